//! Each file that can be wrong is named.

use std::path::Path;

use super::*;

struct Made {
    certificate: String,
    key: String,
}

fn made(not_after: i32) -> Made {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["holdfast".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(not_after, 1, 1);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();
    Made { certificate, key }
}

fn files(directory: &Path) -> TlsFiles {
    let path = |name: &str| directory.join(name);
    TlsFiles {
        ca_certificate: path("ca.pem"),
        ca_key: path("ca.key"),
        certificate: path("server.pem"),
        key: path("server.key"),
        operator_certificate: path("operator.pem"),
        operator_key: path("operator.key"),
    }
}

#[test]
fn the_wrong_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(directory.path());
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let (good, other) = (made(2040), made(2040));
    let put = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
    put(&files.certificate, &good.certificate);
    put(&files.key, &good.key);
    let error = server_config(&files, now).unwrap_err();
    assert!(matches!(&error, TlsError::Read { path, .. } if *path == files.ca_certificate));
    put(&files.ca_certificate, &good.key);
    let error = server_config(&files, now).unwrap_err();
    assert!(matches!(&error, TlsError::Content { path, .. } if *path == files.ca_certificate));
    put(&files.ca_certificate, &good.certificate);
    let config = server_config(&files, now).unwrap();
    assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (0, 0));
    put(&files.ca_certificate, &(good.certificate.clone() + &made(2030).certificate));
    let [(_, server), (_, authority)] = certificate_ends(&files, now).unwrap();
    let ends = [server, authority].map(|end| end.to_string());
    assert_eq!(ends, ["2040-01-01T00:00:00Z", "2030-01-01T00:00:00Z"]);
    put(&files.ca_certificate, &good.certificate);
    put(&files.key, &other.key);
    let error = server_config(&files, now).unwrap_err();
    assert!(matches!(&error, TlsError::Pair { key, .. } if *key == files.key), "{error}");
    put(&files.key, "nothing");
    let error = server_config(&files, now).unwrap_err();
    assert!(matches!(&error, TlsError::Content { path, .. } if *path == files.key));
    put(&files.certificate, &made(2025).certificate);
    let error = server_config(&files, now).unwrap_err();
    assert!(matches!(&error, TlsError::Life { path, .. } if *path == files.certificate));
    assert!(error.to_string().contains("2025-01-01T00:00:00Z"), "{error}");
}
