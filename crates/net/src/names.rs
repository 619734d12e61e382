//! Names that a network leaves in the host's tables: of links and of the nft table.

use crate::error::Error;

/// Longest instance name. A link's name has 15 characters at most: `bth`, the instance, `-` and three digits.
const MAX_INSTANCE: usize = 8;
/// Slots that three digits of base 36 can number.
pub(crate) const MAX_SLOTS: u32 = 36 * 36 * 36;
/// What the links of every instance begin with.
pub(crate) const ANY_LINK: &str = "bth";

/// The names of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    instance: String,
}

impl Names {
    /// Names for `instance`: 1 to 8 of `[a-z0-9]`.
    pub(crate) fn new(instance: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if instance.is_empty() || instance.len() > MAX_INSTANCE || !instance.bytes().all(allowed) {
            return Err(Error::BadInstance { instance: instance.to_owned() });
        }
        Ok(Self { instance: instance.to_owned() })
    }

    /// The instance itself.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The nft table.
    pub(crate) fn table(&self) -> String {
        format!("berth_{}", self.instance)
    }

    /// What all its links begin with. The dash keeps instance `ab` out of the links of `abc`.
    pub(crate) fn link_prefix(&self) -> String {
        format!("{ANY_LINK}{}-", self.instance)
    }

    /// The host's end of slot `number`, which is below [`MAX_SLOTS`].
    pub(crate) fn link(&self, number: u32) -> String {
        let digit = |n: u32| char::from_digit(n % 36, 36).unwrap_or('0');
        let digits = [digit(number / 36 / 36), digit(number / 36), digit(number)];
        self.link_prefix() + &String::from_iter(digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_link_name_fits() {
        let names = Names::new("a1b2c3d4").unwrap();
        assert_eq!(names.link(MAX_SLOTS - 1), "btha1b2c3d4-zzz");
        assert_eq!(names.link(MAX_SLOTS - 1).len(), 15);
        assert_eq!(names.link(37), "btha1b2c3d4-011");
        assert_eq!(names.table(), "berth_a1b2c3d4");
    }

    #[test]
    fn instances_that_do_not_fit_a_name_are_refused() {
        for bad in ["", "A", "a-b", "123456789", "a b", "ä"] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }
}
