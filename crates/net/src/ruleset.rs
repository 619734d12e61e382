//! The nft ruleset of one network, as text. Pure, and the same whatever sandboxes there are: links are known by the
//! beginning of their names, so that a sandbox more or less changes nothing here.
//!
//! # Taking over while sandboxes live
//!
//! A transaction of nftables is all or nothing, but not one moment for every packet. Two things can let packets through
//! that neither the rules before nor those after do:
//!
//! * A chain that is deleted and one that takes its place are two hooks. A packet can be past the new one, still empty,
//!   when the switch comes, and then finds the old one empty. So [`renew`] keeps the chains and replaces what is in
//!   them, which is one moment for each chain and all that it jumps to.
//! * A set of intervals gets its elements after the switch (seen on Linux 6.18, within a few replacements). So whatever refuses does it by a comparison and never by a
//!   set; sets only allow.
//!
//! Where the chains that are there have other hooks (another version made them), they cannot be kept. Then [`guard`]
//! drops every packet of a sandbox until the table is [replaced](replace).

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::names::ANY_LINK;

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

/// Text for `nft -f -` that replaces the table, whatever it was before, in one transaction. For when no sandbox lives, or
/// under a [`guard`].
pub fn replace(rules: &Rules<'_>) -> String {
    format!("{}{}", delete(rules.table), body(rules))
}

/// Text for `nft -f -` that gives the table these rules in one transaction, and is refused where its chains are others.
/// Nothing gets through meanwhile that the rules before and after do not let through. A guard goes.
pub fn renew(rules: &Rules<'_>) -> String {
    let table = rules.table;
    let guard = delete(&guard_name(table));
    format!(
        r#"table inet {table} {{
  set nameservers {{
    type ipv4_addr
  }}
}}
flush table inet {table}
flush set inet {table} nameservers
{}{guard}"#,
        body(rules)
    )
}

/// Text for `nft -f -` that lets nothing from or to a sandbox through, until the table [`guard_name`] is deleted.
pub fn guard(rules: &Rules<'_>) -> String {
    let (table, link_prefix) = (guard_name(rules.table), rules.link_prefix);
    format!(
        r#"{}table inet {table} {{
  chain input {{
    type filter hook input priority filter - 1; policy accept;
    iifname "{link_prefix}*" drop
  }}

  chain forward {{
    type filter hook forward priority filter - 1; policy accept;
    iifname "{link_prefix}*" drop
    oifname "{link_prefix}*" drop
  }}
}}
"#,
        delete(&table)
    )
}

/// The table of a [`guard`].
pub fn guard_name(table: &str) -> String {
    format!("{table}_guard")
}

/// Text that deletes a table, if it is there: "table … {}" first, since deleting one that is not is an error.
pub(crate) fn delete(table: &str) -> String {
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

fn body(rules: &Rules<'_>) -> String {
    let Rules { table, link_prefix, range, nameservers } = rules;
    let mut elements = String::new();
    if !nameservers.is_empty() {
        let list: Vec<_> = nameservers.iter().map(Ipv4Addr::to_string).collect();
        // Writing to a String cannot fail.
        let _ = write!(elements, "\n    elements = {{ {} }}", list.join(", "));
    }
    format!(
        r#"table inet {table} {{
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
    ct state established,related accept
    ct state invalid drop
    oifname "{ANY_LINK}*" reject with icmpx admin-prohibited
    ip daddr @nameservers meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited
    ip daddr {range} reject with icmpx admin-prohibited
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

    fn rules(nameservers: &[Ipv4Addr]) -> Rules<'_> {
        let range = "10.208.16.0/20".parse().unwrap();
        Rules { table: "berth_a1b2", link_prefix: "btha1b2-", range, nameservers }
    }

    #[test]
    fn the_ruleset() {
        insta::assert_snapshot!(replace(&rules(&[
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::new(1, 1, 1, 1)
        ])));
    }

    #[test]
    fn a_renewal_keeps_the_chains_and_has_the_same_rules() {
        let resolvers = [Ipv4Addr::new(1, 1, 1, 1)];
        let rules = rules(&resolvers);
        let (renewed, replaced) = (renew(&rules), replace(&rules));
        assert!(!renewed.contains("delete table inet berth_a1b2\n"), "{renewed}");
        assert!(renewed.contains(replaced.strip_prefix(&delete("berth_a1b2")).unwrap()), "{renewed}");
    }

    #[test]
    fn what_refuses_does_not_ask_a_set() {
        let refuses = |line: &&str| line.contains("reject") || line.contains("drop");
        let text = replace(&rules(&[Ipv4Addr::new(1, 1, 1, 1)]));
        let refusing: Vec<_> = text.lines().filter(refuses).collect();
        assert!(refusing.len() > 6, "{text}");
        assert!(!refusing.iter().any(|line| line.contains('{') || line.contains('@')), "{refusing:?}");
    }

    #[test]
    fn the_guard() {
        insta::assert_snapshot!(guard(&rules(&[])));
    }

    #[test]
    fn no_resolver_leaves_an_empty_set() {
        let text = replace(&rules(&[]));
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
