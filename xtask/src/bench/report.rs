//! Formatting of the results as tables.

use std::{fmt::Write as _, time::Duration};

use super::{
    cluster::Cluster,
    load::{Figures, Work},
};
use crate::output::human;

/// The rounds of one load: the measurements per system.
pub(crate) struct Row {
    pub(crate) work: Work,
    pub(crate) clients: u32,
    pub(crate) rounds: Vec<Vec<Figures>>,
}

/// Returns a line of progress after a load.
pub(crate) fn progress(running: &[Cluster], row: &Row) -> String {
    let systems = running.iter().zip(&row.rounds).map(|(cluster, rounds)| {
        let figures = medians(rounds);
        format!("{} {:.0}/s, {}", cluster.name, figures.ops_per_second, micros(figures.p50_us))
    });
    let systems: Vec<_> = systems.collect();
    format!("{}, {} clients: {}", row.work.title(), row.clients, systems.join("; "))
}

/// Returns the table of loads, with one group of columns per system, and the ratios if there are
/// two systems.
pub(crate) fn loads(names: &[&str], rows: &[Row]) -> String {
    let mut table = vec![vec!["load".to_owned(), "clients".to_owned()]];
    for name in names {
        table[0].extend(["/s", "min-max", "p50", "p99"].map(|column| format!("{name} {column}")));
    }
    if names.len() == 2 {
        table[0].extend(["ratio of /s", "ratio of p50"].map(str::to_owned));
    }
    for row in rows {
        let mut line = vec![row.work.title().to_owned(), row.clients.to_string()];
        for rounds in &row.rounds {
            let figures = medians(rounds);
            let speeds = rounds.iter().map(|round| round.ops_per_second);
            let low = speeds.clone().fold(f64::INFINITY, f64::min);
            let high = speeds.fold(0.0, f64::max);
            line.push(format!("{:.0}", figures.ops_per_second));
            line.push(format!("{low:.0}-{high:.0}"));
            line.extend([micros(figures.p50_us), micros(figures.p99_us)]);
        }
        if let [first, second] = row.rounds.as_slice() {
            let (first, second) = (medians(first), medians(second));
            line.push(format!("{:.2}", second.ops_per_second / first.ops_per_second));
            line.push(format!("{:.2}", second.p50_us / first.p50_us));
        }
        table.push(line);
    }
    markdown(&table)
}

/// Returns the table of the memory of fresh nodes and of nodes after the load.
pub(crate) fn nodes(names: &[&str], [fresh, loaded]: &[Vec<Vec<u64>>; 2]) -> String {
    let heads = ["", "idle node, MiB: fresh", "after the load"];
    let list = |memory: &[u64]| memory.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let mut table = vec![heads.map(str::to_owned).to_vec()];
    for ((name, fresh), loaded) in names.iter().zip(fresh).zip(loaded) {
        table.push(vec![(*name).to_owned(), list(fresh), list(loaded)]);
    }
    markdown(&table)
}

/// The longest times without an acknowledged write for one fault of the leader, per system.
pub(crate) struct Gaps {
    pub(crate) fault: &'static str,
    pub(crate) times: Vec<Vec<Duration>>,
}

/// Returns the table of gaps: the median and the longest per system.
pub(crate) fn gaps(names: &[&str], rows: &[Gaps]) -> String {
    let mut table = vec![vec!["longest gap between writes at the leader's".to_owned()]];
    for name in names {
        table[0].extend(["median", "longest"].map(|column| format!("{name} {column}")));
    }
    for Gaps { fault, times } in rows {
        let mut line = vec![(*fault).to_owned()];
        for times in times {
            let mut sorted = times.clone();
            sorted.sort();
            let at = |index: usize| sorted.get(index).map(|&time| human(time)).unwrap_or_default();
            line.extend([at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]);
        }
        table.push(line);
    }
    markdown(&table)
}

/// Returns the median of each figure separately.
pub(crate) fn medians(rounds: &[Figures]) -> Figures {
    let median = |figure: fn(&Figures) -> f64| {
        let mut values: Vec<_> = rounds.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        // For an even number of values, the mean of the middle two.
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        (at(values.len().saturating_sub(1) / 2) + at(values.len() / 2)) / 2.0
    };
    Figures {
        ops_per_second: median(|figures| figures.ops_per_second),
        p50_us: median(|figures| figures.p50_us),
        p99_us: median(|figures| figures.p99_us),
        max_us: median(|figures| figures.max_us),
    }
}

fn micros(micros: f64) -> String {
    if micros < 1_000.0 {
        format!("{micros:.0} µs")
    } else {
        format!("{:.2} ms", micros / 1_000.0)
    }
}

/// Returns a table with aligned columns, readable as text and as Markdown.
fn markdown(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        table.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0).max(3)).collect();
    let mut text = String::new();
    for (number, row) in table.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(ops_per_second: f64) -> Figures {
        Figures { ops_per_second, p50_us: 1e6 / ops_per_second, p99_us: 2_500.0, max_us: 9_000.0 }
    }

    #[test]
    fn two_systems_are_compared_by_their_medians() {
        let rounds = vec![
            vec![figures(100.0), figures(5_000.0), figures(200.0)],
            vec![figures(400.0), figures(300.0), figures(1.0)],
        ];
        let text = loads(&["a", "b"], &[Row { work: Work::Put, clients: 64, rounds }]);
        let row = text.lines().last().unwrap();
        assert!(row.contains("| 200 "), "{text}");
        assert!(row.contains("| 100-5000 "), "{text}");
        assert!(row.contains("| 1.50 "), "{text}");
        assert!(row.contains("| 0.67 "), "{text}");
        assert!(row.contains("| 2.50 ms "), "{text}");
    }

    #[test]
    fn gaps_show_the_median_and_the_longest() {
        let ms = Duration::from_millis;
        let times = vec![vec![], vec![ms(900), ms(100), ms(300)]];
        let text = gaps(&["a", "b"], &[Gaps { fault: "SIGKILL", times }]);
        let row = text.lines().last().unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells, ["", "SIGKILL", "", "", &human(ms(300)), &human(ms(900)), ""], "{text}");
    }

    #[test]
    fn one_system_alone_has_no_ratio() {
        let rounds = vec![vec![figures(100.0)]];
        let text = loads(&["a"], &[Row { work: Work::Get, clients: 1, rounds }]);
        assert!(!text.contains("ratio"), "{text}");
    }
}
