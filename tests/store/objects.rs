use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use osapi::clock::Clock;
use osapi::error::{Kind, Result};
use osapi::store::objects::Files;
use osapi::store::{Bounds, Noting, Object, Objects, Store, Upload};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::{Disk, links, noted, request};

pub(super) async fn suite(objects: &dyn Objects) {
    a_reader_keeps_the_object_it_opened(objects).await;
    other_content_needs_force(objects).await;
    parts_make_the_whole(objects).await;
    assert!(objects.list().await.unwrap().is_empty());
    assert_eq!(objects.bytes(), 0);
}

fn upload(name: &str, content: impl Into<Vec<u8>>, force: bool) -> Upload {
    Upload {
        name: name.to_owned(),
        content_type: "raw".to_owned(),
        content: Box::pin(Cursor::new(content.into())),
        force,
        note: None,
    }
}

async fn put(objects: &dyn Objects, upload: Upload) -> Result<(Object, bool)> {
    objects.put(upload).await
}

async fn a_reader_keeps_the_object_it_opened(objects: &dyn Objects) {
    let large = vec![7; 700_000];
    let (first, changed) = put(objects, upload("file", large.clone(), false)).await.unwrap();
    assert!(changed);
    assert_eq!((first.size, first.content_type.as_str()), (700_000, "raw"));
    let (found, mut reader) = objects.get("file").await.unwrap().unwrap();
    assert_eq!(found, first);
    let mut start = [0; 10];
    reader.read_exact(&mut start).await.unwrap();
    put(objects, upload("file", "new", true)).await.unwrap();
    let mut rest = Vec::new();
    if reader.read_to_end(&mut rest).await.is_ok() {
        assert_eq!(rest, large[10..]);
    }
    assert_eq!(objects.list().await.unwrap().len(), 1);
    assert!(objects.delete("file", None).await.unwrap());
    assert!(!objects.delete("file", None).await.unwrap());
    assert!(objects.get("file").await.unwrap().is_none());
}

async fn other_content_needs_force(objects: &dyn Objects) {
    let (first, changed) = put(objects, upload("a/ b", "one", false)).await.unwrap();
    assert!(changed);
    // sha256 of "one"
    assert!(first.digest.starts_with("7692c3ad3540bb80"));
    assert_eq!(put(objects, upload("a/ b", "one", false)).await.unwrap(), (first.clone(), false));
    let refused = put(objects, upload("a/ b", "two", false)).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Conflict);
    assert_eq!(objects.find("a/ b").await.unwrap(), Some(first));
    let template = Upload { content_type: "template".to_owned(), ..upload("a/ b", "one", false) };
    assert!(put(objects, template).await.unwrap().1);
    assert_eq!(objects.find("a/ b").await.unwrap().unwrap().content_type, "template");
    assert!(put(objects, upload("a/ b", "two", true)).await.unwrap().1);
    assert_eq!(objects.bytes(), 3);
    objects.delete("a/ b", None).await.unwrap();
}

async fn parts_make_the_whole(objects: &dyn Objects) {
    let content: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    let (object, _) = put(objects, upload("whole", content.clone(), false)).await.unwrap();
    // Both share one file.
    put(objects, upload("again", content.clone(), false)).await.unwrap();
    assert_eq!(objects.bytes(), 200_000);
    objects.delete("again", None).await.unwrap();
    let mut whole = Vec::new();
    loop {
        let offset = whole.len() as u64;
        let part = objects.part(&object.digest, offset, 70_000).await.unwrap();
        if part.is_empty() {
            break;
        }
        whole.extend_from_slice(&part);
    }
    assert_eq!(whole, content);
    objects.delete("whole", None).await.unwrap();
    for digest in [object.digest.as_str(), "../../etc/passwd", ""] {
        let gone = objects.part(digest, 0, 10).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
    }
}

fn store() -> Arc<dyn Store> {
    Arc::new(Disk::new().open(&Clock::default(), Bounds::default()))
}

async fn files(dir: &Path, store: &Arc<dyn Store>, bound: u64) -> Files {
    Files::open(dir, store.clone(), Clock::default(), bound).await.unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn files_stay_within_their_bound() {
    let (dir, store) = (TempDir::new().unwrap(), store());
    let files = files(dir.path(), &store, 1000).await;
    put(&files, upload("a", vec![1; 600], false)).await.unwrap();
    let full = put(&files, upload("b", vec![2; 401], false)).await.unwrap_err();
    assert_eq!(full.kind(), Kind::Full);
    assert_eq!(names(dir.path()).len(), 1);
    put(&files, upload("b", vec![2; 400], false)).await.unwrap();
    files.delete("a", None).await.unwrap();
    put(&files, upload("c", vec![3; 600], false)).await.unwrap();
    assert_eq!(files.bytes(), 1000);
}

#[tokio::test]
async fn what_no_record_names_is_swept_at_the_start() {
    let (dir, store) = (TempDir::new().unwrap(), store());
    let (kept, _) =
        put(&files(dir.path(), &store, 1000).await, upload("a", "one", false)).await.unwrap();
    for stray in ["7.part", &"0".repeat(64), "README"] {
        std::os::unix::fs::symlink("/nowhere", dir.path().join(stray)).unwrap();
    }
    let files = files(dir.path(), &store, 1000).await;
    let mut left = names(dir.path());
    left.sort();
    assert_eq!(left, [kept.digest.as_str(), "README"]);
    assert_eq!(files.bytes(), 3);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let (dir, store) = (TempDir::new().unwrap(), store());
    let files = files(dir.path(), &store, 1000).await;
    let broken = tokio_test_reader();
    let upload = Upload { content: broken, ..upload("a", "", false) };
    assert_eq!(put(&files, upload).await.unwrap_err().kind(), Kind::InvalidInput);
    assert_eq!(names(dir.path()), [] as [&str; 0]);
    assert_eq!(files.bytes(), 0);
}

/// Some bytes, then an error.
fn tokio_test_reader() -> osapi::store::Reader {
    struct Broken(bool);

    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            if self.0 {
                return std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
            }
            self.0 = true;
            buffer.put_slice(b"some");
            std::task::Poll::Ready(Ok(()))
        }
    }

    Box::pin(Broken(false))
}

#[tokio::test]
async fn an_upload_is_noted_with_what_it_did() {
    let (dir, store) = (TempDir::new().unwrap(), store());
    let files = files(dir.path(), &store, 1000).await;
    for _ in 0..2 {
        let note: Noting =
            Box::new(|step, _, changed| Ok(step.note(request(format!("changed {changed}")))));
        put(&files, Upload { note: Some(note), ..upload("a", "one", false) }).await.unwrap();
    }
    let note: Noting = Box::new(|step, _, _| Ok(step.note(request("deleted"))));
    files.delete("a", Some(note)).await.unwrap();
    assert_eq!(noted(&links(&*store).await), ["changed true", "changed false", "deleted"]);
}
