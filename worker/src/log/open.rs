//! Finding the end of the log at start, and making sure that it is the end.

use super::block::Block;
use super::error::{Damage, LogError};
use super::group::Tip;
use super::record::ChainHash;
use super::witness::Witness;

/// The last record on disk. sled recovers to an atomic commit, so nothing needs repair.
pub(super) fn tip(tree: &sled::Tree) -> Result<Tip, LogError> {
    let Some(block) = Block::last(tree)? else { return Ok(Tip::default()) };
    let record = block.end()?;
    Ok(Tip { position: record.position, hash: record.hash })
}

/// Compares the end that was found with what is known to have been acknowledged.
pub(super) fn check_witness(
    tree: &sled::Tree,
    witness: &mut Witness,
    known: Option<(u64, ChainHash)>,
    tip: Tip,
    accept_truncation: bool,
) -> Result<(), LogError> {
    let Some((acknowledged, hash)) = known else { return Ok(()) };
    let verdict = if tip.position < acknowledged {
        Err(LogError::Truncated { acknowledged, found: tip.position })
    } else {
        continues(tree, acknowledged, hash)
    };
    match verdict {
        Err(error) if accept_truncation => {
            tracing::warn!(%error, "continuing with a log that lost events, as told");
            witness.reset(tip.position, tip.hash);
            Ok(())
        }
        other => other,
    }
}

/// The acknowledged event must be the one that is there, not one of another history.
fn continues(tree: &sled::Tree, position: u64, hash: ChainHash) -> Result<(), LogError> {
    if position == 0 {
        return Ok(());
    }
    let block = Block::at(tree, position)?;
    let record = block.as_ref().map(|block| block.find(position)).transpose()?.flatten();
    let (stream, what) = match record {
        Some(record) if record.hash == hash => return Ok(()),
        Some(record) => (Some(record.stream), Damage::Chain),
        None => (None, Damage::Missing),
    };
    Err(LogError::Corrupt { position, stream, what })
}
