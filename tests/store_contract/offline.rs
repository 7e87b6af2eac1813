//! A directory store that is taken offline refuses everything, loses nothing, and comes back.

use holdfast::store::{Class, Condition};

use crate::fixture::{Hands, bytes, fast_directory, name, open};

#[tokio::test]
async fn offline_refuses_to_be_asked_again_later() {
    let directory = fast_directory();
    let clock = Hands::new();
    let store = open(directory.path(), &clock);
    let object = name("machines/web/manifest");
    store.put(&object, bytes("before"), Condition::Absent).await.unwrap();
    let switch = directory.path().join(".offline");
    std::fs::write(&switch, "").unwrap();
    let refused = [
        store.read(&object).await.unwrap_err(),
        store.put(&object, bytes("meanwhile"), Condition::Always).await.unwrap_err(),
        store.list("machines/").await.unwrap_err(),
        store.create_pages(&name("seed/a"), 4096).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.class(), Class::Retry, "{error:?}");
        let text = holdfast::observe::error_chain(&error);
        assert!(text.contains(".offline"), "the cure is named: {text}");
    }
    std::fs::remove_file(&switch).unwrap();
    assert_eq!(store.read(&object).await.unwrap().0, bytes("before"));
}
