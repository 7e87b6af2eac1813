use super::*;
use crate::model::Timestamp;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Time passes when somebody sleeps, and at once.
#[derive(Default)]
struct Quick(AtomicU64);

#[async_trait]
impl Clock for Quick {
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(SeqCst))
    }
    async fn sleep(&self, duration: Duration) {
        self.0.fetch_add(u64::try_from(duration.as_millis()).unwrap(), SeqCst);
    }
}

/// Silent, refusing, or good.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    Nothing,
    No,
    Token,
}

#[derive(Debug)]
struct Authority {
    says: Mutex<Says>,
    asked: AtomicU64,
}

#[async_trait]
impl TokenCredential for Authority {
    async fn get_token(
        &self,
        _: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        self.asked.fetch_add(1, SeqCst);
        let says = *self.says.lock().unwrap();
        match says {
            Says::Nothing => std::future::pending().await,
            Says::No => Err(Error::with_message(ErrorKind::Io, "AADSTS7: who are you?")),
            Says::Token => {
                let hour = std::time::Duration::from_secs(3600);
                Ok(AccessToken::new("t", azure_core::time::OffsetDateTime::UNIX_EPOCH + hour))
            }
        }
    }
}

struct Rig {
    clock: Arc<Quick>,
    authority: Arc<Authority>,
    patience: Patience,
}

impl Rig {
    fn new(says: Says) -> Self {
        let clock = Arc::new(Quick::default());
        let authority = Arc::new(Authority { says: Mutex::new(says), asked: AtomicU64::default() });
        let behind: Arc<dyn TokenCredential> = authority.clone();
        let patience = Patience::new(behind, clock.clone());
        Self { clock, authority, patience }
    }

    async fn ask(&self) -> Result<(), String> {
        let got = self.patience.get_token(&["s"], None).await;
        got.map(drop).map_err(|error| {
            assert_eq!(*error.kind(), ErrorKind::Credential);
            error.to_string()
        })
    }

    fn asked(&self) -> u64 {
        self.authority.asked.load(SeqCst)
    }
}

#[tokio::test]
async fn a_silent_authority_is_given_up() {
    let rig = Rig::new(Says::Nothing);
    let told = tokio::time::timeout(Duration::from_secs(20), rig.ask()).await;
    assert_eq!(told.expect("it is given up").unwrap_err(), "no answer within 10 s");
    assert_eq!(rig.clock.monotonic(), LONGEST);
}

#[tokio::test]
async fn a_failure_is_believed_for_a_while_and_then_asked_about() {
    let rig = Rig::new(Says::No);
    for _ in 0..3 {
        assert_eq!(rig.ask().await.unwrap_err(), "AADSTS7: who are you?");
    }
    assert_eq!(rig.asked(), 1, "who asks at once gets the same words");
    *rig.authority.says.lock().unwrap() = Says::Token;
    rig.clock.sleep(BELIEVED - Duration::from_millis(1)).await;
    assert!(rig.ask().await.is_err());
    rig.clock.sleep(Duration::from_millis(1)).await;
    rig.ask().await.unwrap();
    rig.ask().await.unwrap();
    assert_eq!(rig.asked(), 3, "tokens are kept by others");
}
