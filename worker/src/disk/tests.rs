use super::*;

fn base(dir: &Path) -> PathBuf {
    let base = dir.join("base.img");
    std::fs::write(&base, vec![7u8; 2 * MIB as usize]).unwrap();
    base
}

fn attempt(dir: &Path) -> PathBuf {
    let attempt = dir.join("attempt");
    std::fs::create_dir(&attempt).unwrap();
    attempt
}

#[tokio::test]
async fn nothing_asked_nothing_made() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(prepare(None, dir.path(), 0, DiskFormat::Raw).await.unwrap(), None);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_empty_disk_is_sparse_and_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let disk = prepare(None, dir.path(), 8, DiskFormat::Qcow2).await.unwrap().unwrap();
    assert_eq!((disk.format, disk.path.metadata().unwrap().len()), (DiskFormat::Raw, 8 * MIB));
    assert_eq!(describe(&disk), "raw file, 8 MiB");
    // A second one in the same place would be shared.
    assert!(matches!(prepare(None, dir.path(), 8, DiskFormat::Raw).await, Err(DiskError::File { .. })));
}

#[tokio::test]
async fn raw_disks_leave_the_base_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (base, attempt) = (base(dir.path()), attempt(dir.path()));
    let disk = prepare(Some(&base), &attempt, 16, DiskFormat::Raw).await.unwrap().unwrap();
    assert_eq!(disk.path.metadata().unwrap().len(), 16 * MIB);
    std::fs::write(&disk.path, "guest wrote this").unwrap();
    assert_eq!(std::fs::read(&base).unwrap()[..4], [7; 4]);
    if let Some(shown) = disk.read_only_base {
        assert_eq!(shown, base);
    }
    remove(&attempt).unwrap();
    remove(&attempt).unwrap();
    assert_eq!(std::fs::read_dir(&attempt).unwrap().count(), 0);
    assert!(base.exists());
}

#[tokio::test]
async fn a_qcow2_base_is_refused_where_raw_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("b");
    std::fs::write(&base, [&QCOW2_MAGIC[..], &[0; 100]].concat()).unwrap();
    let attempt = attempt(dir.path());
    assert!(matches!(prepare(Some(&base), &attempt, 0, DiskFormat::Raw).await, Err(DiskError::Format(_))));
    assert_eq!(std::fs::read_dir(&attempt).unwrap().count(), 0);
}

#[tokio::test]
async fn a_missing_base_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let error = prepare(Some(&dir.path().join("none")), dir.path(), 0, format).await.unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}

#[tokio::test]
async fn overlays_are_small_and_refer_to_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let (base, attempt) = (base(dir.path()), attempt(dir.path()));
    let disk = match prepare(Some(&base), &attempt, 64, DiskFormat::Qcow2).await {
        Err(DiskError::NoTool(error)) => {
            eprintln!("SKIPPED overlays_are_small_and_refer_to_the_base: {error}");
            return;
        }
        made => made.unwrap().unwrap(),
    };
    let bytes = std::fs::read(&disk.path).unwrap();
    assert!(bytes.starts_with(&QCOW2_MAGIC) && bytes.len() < MIB as usize);
    let virtual_size = u64::from_be_bytes(bytes[24..32].try_into().unwrap());
    assert_eq!(virtual_size, 64 * MIB);
    assert_eq!(describe(&disk), "qcow2 overlay, 64 MiB");
    let name = base.to_str().unwrap().as_bytes();
    assert!(bytes.windows(name.len()).any(|part| part == name));
}
