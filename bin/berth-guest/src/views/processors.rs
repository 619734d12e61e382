//! The processors that a sandbox is shown, as a list, in /proc/stat and in masks.

/// Highest number that a list may hold; more than any kernel supports.
const NUMBER_MAX: u32 = 65_535;

/// Reads a list in the kernel's form, "0-3,8"; `None` when it is none, or empty.
pub(crate) fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last > NUMBER_MAX || numbers.last().is_some_and(|before| *before >= first) {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// The machine's /proc/stat with the lines of these processors alone, and their sum in place of that of all.
pub(crate) fn stat(machine: &str, processors: &[u32]) -> String {
    let mut sum: Vec<u64> = Vec::new();
    let mut shown = String::new();
    let mut rest = String::new();
    for line in machine.lines() {
        let Some((name, figures)) = line.split_once(' ').filter(|(name, _)| name.starts_with("cpu")) else {
            rest.push_str(line);
            rest.push('\n');
            continue;
        };
        if name[3..].parse().is_ok_and(|number| processors.contains(&number)) {
            add(&mut sum, figures);
            shown.push_str(line);
            shown.push('\n');
        }
    }
    let figures: Vec<String> = sum.iter().map(u64::to_string).collect();
    format!("cpu  {}\n{shown}{rest}", figures.join(" "))
}

fn add(sum: &mut Vec<u64>, figures: &str) {
    for (column, figure) in figures.split_ascii_whitespace().enumerate() {
        let figure: u64 = figure.parse().unwrap_or(0);
        match sum.get_mut(column) {
            Some(sum) => *sum = sum.wrapping_add(figure),
            None => sum.push(figure),
        }
    }
}

/// Leaves the lowest `count` bits of a mask set. A mask has the kernel's form: longs in the machine's order, which on
/// all architectures here makes bit n of byte m processor 8m+n.
pub(crate) fn lowest(mask: &mut [u8], count: usize) {
    let mut left = count;
    for byte in mask {
        for bit in 0..8 {
            let set = *byte & (1 << bit) != 0;
            if set && left == 0 {
                *byte &= !(1 << bit);
            }
            left -= usize::from(set && left > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(parse_list("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_list("3"), Some(vec![3]));
        for bad in ["", "2-1", "x", "0-99999999", "1,1", "0,,1", "-1"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn stat_tells_of_what_is_shown() {
        let machine = "cpu  66 6 6 6 0 0 0 0 0 0\ncpu0 10 1 1 1 0 0 0 0 0 0\ncpu1 20 2 2 2 0 0 0 0 0 0\n\
                       cpu2 36 3 3 3 0 0 0 0 0 0\nintr 5 1 2\nctxt 7\nbtime 1\nprocesses 9\nprocs_running 1\n";
        insta::assert_snapshot!(stat(machine, &[0, 2]), @r"
        cpu  46 4 4 4 0 0 0 0 0 0
        cpu0 10 1 1 1 0 0 0 0 0 0
        cpu2 36 3 3 3 0 0 0 0 0 0
        intr 5 1 2
        ctxt 7
        btime 1
        processes 9
        procs_running 1
        ");
    }

    proptest! {
        #[test]
        fn masks_keep_their_lowest(mask in any::<[u8; 16]>(), count in 0_usize..130) {
            let original = u128::from_le_bytes(mask);
            let mut kept = mask;
            lowest(&mut kept, count);
            let kept = u128::from_le_bytes(kept);
            prop_assert_eq!(kept & !original, 0);
            prop_assert_eq!(kept.count_ones() as usize, count.min(original.count_ones() as usize));
            let dropped = original & !kept;
            prop_assert!(dropped == 0 || kept == 0 || kept.leading_zeros() > dropped.leading_zeros()
                || (127 - kept.leading_zeros()) < dropped.trailing_zeros());
        }
    }
}
