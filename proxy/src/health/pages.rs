//! The pages: `/healthz` and `/livez` for everybody; `/metrics`, `/metrics/slis`, `/proxyMode`,
//! `/configz`, `/flagz`, `/statusz` beside them on the address for metrics.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::StatusCode;

use super::server::{Answer, Page};
use super::{Health, Question};
use crate::config::KubeProxyConfiguration;
use crate::metrics::Metrics;

/// What pages are made from.
#[derive(Debug, Clone)]
pub struct Pages {
    /// For `/healthz` and `/livez`.
    pub health: Arc<Health>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/metrics`, where cluster DNS is served.
    pub dns: Option<Arc<dns::Counters>>,
    /// For `/proxyMode`.
    pub mode: &'static str,
    /// For `/configz`.
    pub settings: Arc<KubeProxyConfiguration>,
    /// For `/flagz`: names and values as they were given.
    pub flags: Arc<[(String, String)]>,
    /// For `/statusz`.
    pub started: Instant,
}

impl Pages {
    /// The pages that anybody may see.
    pub fn health_only(&self) -> Answer {
        let pages = self.clone();
        Arc::new(move |path| pages.health_page(path).unwrap_or_else(Page::not_found))
    }

    /// All pages.
    pub fn all(&self) -> Answer {
        let pages = self.clone();
        Arc::new(move |path| {
            let page = pages.health_page(path).or_else(|| pages.other_page(path));
            page.unwrap_or_else(Page::not_found)
        })
    }

    fn health_page(&self, path: &str) -> Option<Page> {
        let question = match path {
            "/healthz" => Question::Healthz,
            "/livez" => Question::Livez,
            _ => return None,
        };
        let now = Instant::now();
        let (healthy, body) = self.health.answer(question, now, SystemTime::now());
        let code = if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        self.metrics.answered(question.page(), code.as_u16());
        Some(Page {
            code,
            ..Page::new("application/json", body)
        })
    }

    fn other_page(&self, path: &str) -> Option<Page> {
        const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
        Some(match path {
            "/metrics" => {
                let mut text = self.metrics.render();
                if let Some(counters) = &self.dns {
                    text.push_str(&crate::cluster_dns::metrics(counters));
                }
                Page::new(METRICS, text)
            }
            "/metrics/slis" => {
                let now = Instant::now();
                let check = |question| self.health.is_healthy(question, now);
                let checks = [
                    ("healthz", check(Question::Healthz)),
                    ("livez", check(Question::Livez)),
                ];
                Page::new(METRICS, self.metrics.render_slis(&checks))
            }
            "/proxyMode" => Page::text(self.mode),
            "/configz" => {
                let settings = serde_json::json!({ "kubeproxy.config.k8s.io": &*self.settings });
                Page::new("application/json", settings.to_string())
            }
            "/flagz" => Page::text(self.flagz()),
            "/statusz" => Page::text(self.statusz()),
            _ => return None,
        })
    }

    fn flagz(&self) -> String {
        let mut text = head(
            "Kubernetes Flagz",
            "Command line flags that Kubernetes component was started with.",
        );
        for (name, value) in &*self.flags {
            // Writing to a String cannot fail.
            let _written = writeln!(text, "{name}={value}");
        }
        text
    }

    fn statusz(&self) -> String {
        let mut text = head("Kubernetes Statusz", "Status of the component.");
        let up = self.started.elapsed().as_secs();
        let started = SystemTime::now() - self.started.elapsed();
        let _written = write!(
            text,
            "Started: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\nPaths: /configz /flagz /healthz /livez /metrics /metrics/slis /proxyMode\n",
            super::written(started),
            up / 3600,
            up / 60 % 60,
            up % 60,
            env!("CARGO_PKG_VERSION"),
        );
        text
    }
}

fn head(title: &str, about: &str) -> String {
    let rule = "-".repeat(28);
    format!("{rule}\ntitle: {title}\ndescription: {about}\n{rule}\n\n")
}

/// Flags as `/flagz` lists them: sorted by name, without hyphens in front.
pub fn flags(words: &[String]) -> Arc<[(String, String)]> {
    let mut flags = Vec::new();
    let mut rest = words.iter().skip(1).peekable();
    while let Some(word) = rest.next() {
        let Some(name) = word.strip_prefix('-') else {
            continue;
        };
        let name = name.trim_start_matches('-');
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let value = rest.next_if(|next| !next.starts_with('-'));
                (name, value.cloned().unwrap_or_else(|| "true".to_owned()))
            }
        };
        flags.push((name.to_owned(), value));
    }
    flags.sort();
    flags.into()
}
