//! Pictures from other servers: from hosts that were named only, and never from addresses of this network, unless that was
//! asked for.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Where pictures may be fetched from.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Names of hosts, without ports.
    pub hosts: Vec<String>,
    /// Whether these may be in this network: loopback, private, link-local and other addresses that are not public.
    pub allow_private: bool,
    /// How long fetching a picture may take.
    pub timeout: Duration,
}

/// Fetches pictures.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher {
    agent: ureq::Agent,
    hosts: Vec<String>,
    max_bytes: u64,
}

impl Fetcher {
    pub(crate) fn new(remote: &Remote, max_bytes: u64) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(remote.timeout))
            // A redirect could lead anywhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            // Nor could a proxy's address be checked.
            .proxy(None)
            .user_agent("flamingo")
            .build();
        let resolver = Public { inner: DefaultResolver::default(), allow_private: remote.allow_private };
        let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), resolver);
        let hosts = remote.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { agent, hosts, max_bytes }
    }

    /// The bytes at an address, or in one sentence why not.
    pub(crate) fn fetch(&self, url: &str) -> Result<Vec<u8>, String> {
        let uri: Uri = url.parse().map_err(|_| "an image_url is no valid address".to_string())?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        if !matches!(uri.scheme_str(), Some("http" | "https"))
            || uri.authority().is_some_and(|a| a.as_str().contains('@'))
        {
            return Err("an image_url is neither a data: URL nor a plain http(s) address".into());
        }
        if !self.hosts.contains(&host) {
            return Err(format!(
                "pictures may not be fetched from {host:?}: the server names the hosts that they may come from"
            ));
        }
        let mut response = self.agent.get(uri).call().map_err(|e| match e {
            // What the resolver says; other details would tell a client about this network.
            ureq::Error::HostNotFound => format!("{host} is not found, or its address is not public"),
            ureq::Error::Timeout(_) => format!("{host} takes too long to send a picture"),
            _ => format!("{host} cannot be reached"),
        })?;
        if response.status() != 200 {
            return Err(format!("{host} answers with status {} instead of a picture", response.status().as_u16()));
        }
        let mut bytes = Vec::new();
        let reader = response.body_mut().as_reader();
        reader
            .take(self.max_bytes + 1)
            .read_to_end(&mut bytes)
            .map_err(|_| format!("{host} breaks off, or takes too long to send a picture"))?;
        if bytes.len() as u64 > self.max_bytes {
            return Err(format!("the picture at {host} has more than {} bytes", self.max_bytes));
        }
        Ok(bytes)
    }
}

/// Finds public addresses only. What it finds is what is connected to: a name cannot change its address in between.
#[derive(Debug)]
struct Public {
    inner: DefaultResolver,
    allow_private: bool,
}

impl Resolver for Public {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut public = self.empty();
        let allowed = found.iter().filter(|address: &&SocketAddr| self.allow_private || is_public(address.ip()));
        allowed.for_each(|address| public.push(*address));
        if public.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(public) }
    }
}

/// Whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => is_public_v4(inner),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocols = a == 192 && b == 0 && c == 0;
    let benchmarks = a == 198 && (18..20).contains(&b);
    let relay = a == 192 && b == 88 && c == 99;
    !(a == 0
        || a >= 224
        || shared
        || protocols
        || benchmarks
        || relay
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation())
}

/// Only what is handed out to the internet, less what has other uses there.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let global = (segments[0] & 0xe000) == 0x2000;
    let special = segments[0] == 0x2001 && segments[1] < 0x0200;
    let documentation = (segments[0] == 0x2001 && segments[1] == 0x0db8) || (segments[0] & 0xfff0) == 0x3ff0;
    global && !special && !documentation
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, translated or 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let last = || Ipv4Addr::from(((u32::from(segments[6])) << 16) | u32::from(segments[7]));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(last()),
        [0, 0, 0, 0, 0, 0, _, _] if !address.is_loopback() && !address.is_unspecified() => Some(last()),
        [0x2002, high, low, ..] => Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        let public = ["93.184.216.34", "8.8.8.8", "172.15.0.1", "172.32.0.1", "2606:2800:220:1::1", "2a00::1"];
        for address in public {
            assert!(is_public(address.parse().expect("an address")), "{address}");
        }
        let others = [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.255.254",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2001:db8::1",
            "2001::1",
            "3fff::1",
        ];
        for address in others {
            assert!(!is_public(address.parse().expect("an address")), "{address}");
        }
    }
}
