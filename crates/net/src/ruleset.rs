//! The nft ruleset of one network, as text. Pure, and the same whatever sandboxes there are: links are known by the
//! beginning of their names, so that a sandbox more or less changes nothing here.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::names::{ANY_LINK, Names};

/// What the ruleset depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Name of the table.
    pub table: &'a str,
    /// What the names of this network's links begin with.
    pub link_prefix: &'a str,
    /// Addresses of the sandboxes.
    pub range: Ipv4Net,
    /// Resolvers that stay open on port 53 though they be in a refused range.
    pub nameservers: &'a [Ipv4Addr],
}

/// Text for `nft -f -` that replaces the table, whatever it was before, in one transaction.
pub fn render(rules: &Rules<'_>) -> String {
    let Rules { table, link_prefix, range, nameservers } = rules;
    let mut elements = String::new();
    if !nameservers.is_empty() {
        let list: Vec<_> = nameservers.iter().map(Ipv4Addr::to_string).collect();
        // Writing to a String cannot fail.
        let _ = write!(elements, "\n    elements = {{ {} }}", list.join(", "));
    }
    // "table … {}" first, since deleting a table that is not there is an error.
    format!(
        r#"table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  set nameservers {{
    type ipv4_addr{elements}
  }}

  # A source address that is not routed to the link it came from is forged; IPv6 is not for sandboxes yet.
  chain forged {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{link_prefix}*" meta nfproto ipv6 drop
    iifname "{link_prefix}*" fib saddr . iif oif missing drop
  }}

  # The host itself.
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{link_prefix}*" ct state established,related ct direction reply accept
    iifname "{link_prefix}*" reject with icmpx admin-prohibited
  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{link_prefix}*" jump from_sandbox
    oifname "{link_prefix}*" jump to_sandbox
  }}

  # Packets of an unknown connection would leave without translation, so they are dropped.
  chain from_sandbox {{
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
    oifname "{ANY_LINK}*" reject with icmpx admin-prohibited
    ip daddr @nameservers meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr {{ 169.254.0.0/16, {range} }} reject with icmpx admin-prohibited
  }}

  chain to_sandbox {{
    ct state established,related accept
    reject with icmpx admin-prohibited
  }}

  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {range} oifname != "{link_prefix}*" masquerade
  }}
}}
"#
    )
}

/// The ruleset of the network that has these names.
pub(crate) fn of(names: &Names, range: Ipv4Net, nameservers: &[Ipv4Addr]) -> String {
    let (table, link_prefix) = (names.table(), names.link_prefix());
    render(&Rules { table: &table, link_prefix: &link_prefix, range, nameservers })
}

/// Forward chains of other tables that drop what they do not accept, from `nft list chains`: `inet filter FORWARD`.
pub(crate) fn foreign_forward_drops(chains: &str, own_table: &str) -> Vec<String> {
    let (mut table, mut chain, mut found) = ("", "", Vec::new());
    for line in chains.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if line.contains("hook forward") && line.contains("policy drop") && !is_table(table, own_table)
        {
            found.push(format!("{table} {chain}"));
        }
    }
    found
}

fn is_table(family_and_name: &str, name: &str) -> bool {
    family_and_name.split_once(' ').is_some_and(|(_, n)| n == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ruleset() {
        let names = Names::new("a1b2").unwrap();
        let range = "10.208.16.0/20".parse().unwrap();
        insta::assert_snapshot!(of(
            &names,
            range,
            &[Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(1, 1, 1, 1)]
        ));
    }

    #[test]
    fn no_resolver_leaves_an_empty_set() {
        let names = Names::new("a1b2").unwrap();
        let text = of(&names, "10.208.16.0/20".parse().unwrap(), &[]);
        assert!(text.contains("type ipv4_addr\n  }"), "{text}");
    }

    #[test]
    fn chains_that_drop_by_default_are_found() {
        let listing = "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n\
            \tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n\
            table inet berth_a {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
        assert_eq!(foreign_forward_drops(listing, "berth_a"), ["ip filter FORWARD"]);
    }
}
