//! A delivery once more, by today's settings: after a mapping was mended, or to have its job again.

use super::receive::{Answer, Decision, Seen, decide, key_of, written};
use super::verify::Verified;
use crate::http::{Api, Problem};

/// Replays a delivery. `replays` is how often the asker believes that was done before: the same
/// request twice, or two people at once, then make one job.
pub async fn replay(api: &Api, n: u64, replays: Option<u32>) -> Result<Answer, Problem> {
    let missing = || Problem::not_found(format!("no delivery {n} is kept"), "GET /v1/hooks/deliveries lists them");
    let hooks = api.webhooks().map(|webhooks| webhooks.hooks.clone()).ok_or_else(missing)?;
    let delivery = hooks.log().get(n)?.ok_or_else(missing)?;
    let (Some(id), Some(body)) = (delivery.id.clone(), hooks.log().body(n)?) else {
        let detail = "it was not proven genuine, was seen before, or is too large: its body is not kept";
        return Err(Problem::conflict(detail, "have its sender send it again"));
    };
    let source = hooks.sources().get(&delivery.source).ok_or_else(|| {
        let detail = format!("the source {:?} is no longer set up", delivery.source);
        Problem::conflict(detail, "put it into the hooks file")
    })?;
    let _alone = hooks.alone(&source.name, &id).await;
    // Another replay may have come between.
    let mut delivery = hooks.log().get(n)?.ok_or_else(missing)?;
    if replays.is_some_and(|replays| replays != delivery.replays) {
        return Err(Problem::conflict("it has been replayed meanwhile", "look at the newest deliveries first"));
    }
    delivery.replays += 1;
    hooks.log().update(&delivery)?;
    let has_job = hooks.log().settled(&source.name, &id)?.is_some_and(|settled| settled.job.is_some());
    // The first replay of one that made no job takes the sender's own key: its next try is a duplicate.
    let key = match key_of(&source.name, &id) {
        key if has_job || delivery.replays > 1 => format!("{key}#replay-{n}-{}", delivery.replays),
        key => key,
    };
    let verified = Verified { id, event: delivery.event.clone() };
    let seen = Seen { source, at: api.now(), headers: delivery.headers, body: &body, replay_of: Some(n) };
    let decision: Decision = decide(api, &seen, &verified, &key).await;
    Ok(written(&hooks, seen, Some(verified), decision))
}
