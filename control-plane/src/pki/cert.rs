//! The cluster's CA and the certificates it signs.

use std::net::IpAddr;
use std::path::Path;

use jiff::{Timestamp, ToSpan, civil};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Error;
use super::files::{PUBLIC, SECRET, read_if_there, write_atomically};

/// Days a CA is valid, as kubeadm's.
const CA_DAYS: i32 = 3_650;
/// Days any other certificate is valid, as kubeadm's.
const LEAF_DAYS: i32 = 365;
/// A certificate with less than this left is made anew.
const RENEW_DAYS_LEFT: i64 = 30;

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
}

/// A certificate to be signed.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// CN: Kubernetes reads it as the user.
    pub common_name: &'a str,
    /// O: Kubernetes reads it as the group.
    pub group: Option<&'a str>,
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// What for.
    pub usage: Usage,
}

impl<'a> Leaf<'a> {
    /// A client certificate for a user.
    pub fn client(user: &'a str, group: Option<&'a str>) -> Self {
        Self {
            common_name: user,
            group,
            names: Vec::new(),
            usage: Usage::Client,
        }
    }
}

/// The certificate authority of the cluster.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the CA or makes it; tells whether it is new.
    pub fn ensure(cert: &Path, key: &Path) -> Result<(Self, bool), Error> {
        if let (Some(pem), Some(pair)) = (read_if_there(cert)?, read_key(key)?) {
            let pem = text(pem, cert)?;
            let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(|e| content(cert, e))?;
            return Ok((Self { pem, issuer }, false));
        }
        let fail = |e| Error::Certificate {
            name: "kubernetes".into(),
            reason: format!("{e}"),
        };
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = name("kubernetes", None);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        validity(&mut params, CA_DAYS);
        let pair = KeyPair::generate().map_err(fail)?;
        let pem = params.self_signed(&pair).map_err(fail)?.pem();
        write_atomically(key, pair.serialize_pem().as_bytes(), SECRET)?;
        write_atomically(cert, pem.as_bytes(), PUBLIC)?;
        Ok((
            Self {
                pem,
                issuer: Issuer::new(params, pair),
            },
            true,
        ))
    }

    /// The CA certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate with a key of its own; both as PEM, certificate first.
    pub fn sign(&self, leaf: &Leaf<'_>) -> Result<(String, String), Error> {
        let fail = |e| Error::Certificate {
            name: leaf.common_name.into(),
            reason: format!("{e}"),
        };
        let mut params = CertificateParams::new(leaf.names.clone()).map_err(fail)?;
        params.distinguished_name = name(leaf.common_name, leaf.group);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match leaf.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        validity(&mut params, LEAF_DAYS);
        let pair = KeyPair::generate().map_err(fail)?;
        let pem = params.signed_by(&pair, &self.issuer).map_err(fail)?.pem();
        Ok((pem, pair.serialize_pem()))
    }

    /// Writes certificate and key unless good ones are there. Names of the old certificate are kept.
    pub(super) fn ensure_leaf(
        &self,
        leaf: &Leaf<'_>,
        cert: &Path,
        key: &Path,
        anew: bool,
    ) -> Result<(), Error> {
        let mut leaf = leaf.clone();
        if let (false, Some(old), Some(pair)) = (anew, read_if_there(cert)?, read_key(key)?) {
            let facts = facts(&old).map_err(|reason| content(cert, reason))?;
            let complete = leaf
                .names
                .iter()
                .all(|name| facts.names.contains(&canonical(name)));
            if complete && facts.days_left > RENEW_DAYS_LEFT && facts.key == pair.public_key_raw() {
                return Ok(());
            }
            leaf.names.extend(facts.names);
        }
        let mut seen = std::collections::BTreeSet::new();
        leaf.names.retain(|name| seen.insert(canonical(name)));
        let (cert_pem, key_pem) = self.sign(&leaf)?;
        write_atomically(key, key_pem.as_bytes(), SECRET)?;
        write_atomically(cert, cert_pem.as_bytes(), PUBLIC)
    }
}

/// Makes the key that signs service account tokens, and its public half.
pub(super) fn ensure_key_pair(private: &Path, public: &Path) -> Result<(), Error> {
    let pair = match read_key(private)? {
        Some(pair) if public.exists() => return drop_ok(pair),
        Some(pair) => pair,
        None => {
            let fail = |e: rcgen::Error| content(private, e);
            let pair = KeyPair::generate().map_err(fail)?;
            write_atomically(private, pair.serialize_pem().as_bytes(), SECRET)?;
            pair
        }
    };
    write_atomically(public, pair.public_key_pem().as_bytes(), PUBLIC)
}

fn drop_ok(pair: KeyPair) -> Result<(), Error> {
    drop(pair);
    Ok(())
}

/// User (CN) and groups (all O) of a client certificate.
pub fn subject_of(der: &[u8]) -> Option<(String, Vec<String>)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned);
    Some((user, groups.collect()))
}

/// What decides whether a certificate is kept.
pub(super) struct Facts {
    pub(super) names: Vec<String>,
    pub(super) days_left: i64,
    key: Vec<u8>,
}

pub(super) fn facts(pem: &[u8]) -> Result<Facts, String> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|e| e.to_string())?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|e| e.to_string())?;
    let mut names = Vec::new();
    if let Ok(Some(san)) = certificate.subject_alternative_name() {
        for name in &san.value.general_names {
            if let GeneralName::DNSName(dns) = name {
                names.push((*dns).to_owned());
            } else if let GeneralName::IPAddress(bytes) = name {
                names.extend(address(bytes).map(|ip| ip.to_string()));
            }
        }
    }
    let left = certificate.validity().not_after.timestamp() - Timestamp::now().as_second();
    let key = certificate.public_key().subject_public_key.data.to_vec();
    Ok(Facts {
        names,
        days_left: left / 86_400,
        key,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// One spelling per address, so that names can be compared.
fn canonical(name: &str) -> String {
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_owned(), |ip| ip.to_string())
}

fn name(common_name: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid from yesterday (clocks differ) for `days`.
fn validity(params: &mut CertificateParams, days: i32) {
    let date = |offset: i32| -> civil::Date {
        let today = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
        today.saturating_add(offset.days())
    };
    let time = |date: civil::Date| {
        let part = |n: i8| u8::try_from(n).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    };
    params.not_before = time(date(-1));
    params.not_after = time(date(days));
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, Error> {
    let Some(bytes) = read_if_there(path)? else {
        return Ok(None);
    };
    let pem = text(bytes, path)?;
    KeyPair::from_pem(&pem)
        .map(Some)
        .map_err(|e| content(path, e))
}

fn text(bytes: Vec<u8>, path: &Path) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|e| content(path, e))
}

fn content(path: &Path, reason: impl ToString) -> Error {
    Error::Content {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
