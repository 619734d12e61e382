//! Names to addresses, by the servers of a sandbox and nobody else: what the C library would ask is the host's business.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use berth_build::runner::RunnerError;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::{infrastructure, user};

/// A resolver; belongs to the runtime that it is first used in.
#[derive(Clone)]
pub(super) struct Names(Arc<TokioResolver>);

impl Names {
    /// With the servers and search domains of a `resolv.conf`.
    pub(super) fn of(resolv_conf: &str) -> Result<Names, RunnerError> {
        let (servers, search) = parse(resolv_conf);
        if servers.is_empty() {
            return Err(user("this build has no servers to ask for names"));
        }
        let mut config = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        servers.into_iter().for_each(|server| config.add_name_server(NameServerConfig::udp_and_tcp(server)));
        search.iter().filter_map(|name| name.parse().ok()).for_each(|name| config.add_search(name));
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        // The host's file of names is not the sandbox's.
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
        let resolver = builder.build().map_err(|e| infrastructure("cannot resolve names", e))?;
        Ok(Names(Arc::new(resolver)))
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.0.clone();
        Box::pin(async move {
            // As the C library and every /etc/hosts have it; no server is asked.
            if name.as_str().eq_ignore_ascii_case("localhost") {
                let own = [IpAddr::from([127, 0, 0, 1])].map(|ip| SocketAddr::new(ip, 0));
                return Ok(Box::new(own.into_iter()) as Addrs);
            }
            let found = resolver.lookup_ip(name.as_str()).await?;
            let addresses: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn parse(text: &str) -> (Vec<IpAddr>, Vec<String>) {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
            // The last one counts.
            Some("search" | "domain") => search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    (servers, search)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_says_whom_to_ask() {
        let text = "# none\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver x\ndomain a\nsearch b c\noptions x\n";
        let (servers, search) = parse(text);
        assert_eq!(servers, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(search, ["b", "c"]);
    }

    #[test]
    fn nobody_to_ask_is_said() {
        let error = Names::of("search x\n").map(drop).unwrap_err();
        assert!(matches!(error, RunnerError::User { .. }), "{error:?}");
    }
}
