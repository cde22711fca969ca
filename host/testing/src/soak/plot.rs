//! The samples of a run as one SVG: memory, disk, descriptors, entries and the work done, over time.

use std::error::Error;

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, prelude::*};

use super::{
    judge::DISK_FACTOR,
    sample::{Sample, Usage},
};

const SIZE: (u32, u32) = (960, 1150);
const FONT: &str = "sans-serif";
/// One color per node. They can be distinguished without seeing red and green.
const COLORS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];
const GRAY: RGBColor = RGBColor(130, 130, 130);
/// Maximum number of points per curve. More points would not be visible.
const POINTS_MAX: usize = 480;
const MIB: f64 = 1_048_576.0;

/// A curve with its label and color.
struct Curve {
    label: String,
    color: RGBColor,
    values: Vec<f64>,
}

/// Plots all samples under this title.
///
/// # Errors
/// Fails if the plotting library cannot draw the samples.
pub fn svg(samples: &[Sample], title: &str) -> Result<String> {
    let step = samples.len().div_ceil(POINTS_MAX).max(1);
    let samples: Vec<Sample> = samples.iter().step_by(step).cloned().collect();
    let mut text = String::new();
    draw(&samples, title, &mut text).map_err(|error| anyhow!("cannot draw the plot: {error}"))?;
    Ok(text)
}

fn draw(samples: &[Sample], title: &str, text: &mut String) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, (FONT, 17))?;
    let panels = root.split_evenly((5, 1));
    let minutes: Vec<f64> = samples.iter().map(|sample| sample.at.as_secs_f64() / 60.0).collect();
    let per_node = |of: fn(&Usage) -> f64| per_node(samples, of);
    let curves = [
        ("resident memory, MiB", per_node(|usage| usage.resident_bytes as f64 / MIB)),
        ("disk space of the data directory, MiB", disk(samples)),
        ("open descriptors", per_node(|usage| usage.descriptors as f64)),
        ("applied index, thousands", per_node(|usage| usage.applied as f64 / 1e3)),
        ("node 1 since the beginning", done(samples)),
    ];
    for (panel, (name, curves)) in panels.iter().zip(curves) {
        draw_panel(panel, name, &minutes, &curves)?;
    }
    root.present()?;
    Ok(())
}

fn per_node(samples: &[Sample], of: fn(&Usage) -> f64) -> Vec<Curve> {
    let curve = |(node, color): (usize, RGBColor)| Curve {
        label: format!("node {}", node + 1),
        color,
        values: samples.iter().filter_map(|sample| sample.nodes.get(node)).map(of).collect(),
    };
    let nodes = samples.first().map_or(0, |sample| sample.nodes.len());
    (0..nodes).zip(COLORS.into_iter().cycle()).map(curve).collect()
}

/// The disk space of each node, with the limit of the node that has the lowest limit.
fn disk(samples: &[Sample]) -> Vec<Curve> {
    let least = |sample: &Sample| {
        sample.nodes.iter().map(Usage::needed_bytes).min().unwrap_or_default() as f64 / MIB
    };
    let needed: Vec<f64> = samples.iter().map(least).collect();
    let limit = needed.iter().map(|needed| needed * DISK_FACTOR).collect();
    let mut curves = per_node(samples, |usage| usage.disk_bytes() as f64 / MIB);
    curves.push(Curve { label: "log and snapshots".to_owned(), color: GRAY, values: needed });
    curves.push(Curve { label: format!("{DISK_FACTOR} times that"), color: BLACK, values: limit });
    curves
}

/// The work that the first node has done.
fn done(samples: &[Sample]) -> Vec<Curve> {
    let first: Vec<Usage> =
        samples.iter().filter_map(|sample| sample.nodes.first().copied()).collect();
    let changes = |of: fn(&Usage) -> u64| {
        let mut count = 0.0;
        let changed = first.windows(2).map(|pair| of(&pair[0]) != of(&pair[1]));
        let counts = changed.map(|changed| {
            count += f64::from(u8::from(changed));
            count
        });
        [0.0].into_iter().chain(counts).take(first.len()).collect()
    };
    let curve = |label: &str, color, values| Curve { label: label.to_owned(), color, values };
    vec![
        curve("snapshots", COLORS[0], changes(|usage| usage.snapshot)),
        curve("purges of the log", COLORS[2], changes(|usage| usage.purged)),
        curve("traps", COLORS[1], first.iter().map(|usage| usage.traps as f64).collect()),
    ]
}

fn draw_panel(
    panel: &DrawingArea<SVGBackend<'_>, Shift>,
    name: &str,
    minutes: &[f64],
    curves: &[Curve],
) -> Result<(), Box<dyn Error>> {
    let right = minutes.last().copied().unwrap_or_default().max(0.1);
    let top =
        curves.iter().flat_map(|curve| &curve.values).fold(1.0_f64, |top, value| top.max(*value));
    let mut chart = ChartBuilder::on(panel)
        .caption(name, (FONT, 14))
        .margin_left(8)
        .margin_right(16)
        .x_label_area_size(24)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..right * 1.2, 0.0..top * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(13)
        .y_labels(6)
        .x_label_formatter(&|minute| format!("{minute:.0} min"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style((FONT, 11))
        .draw()?;
    for curve in curves {
        let (color, points) =
            (curve.color, minutes.iter().copied().zip(curve.values.iter().copied()));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(1)))?
            .label(&curve.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE.mix(0.85))
        .label_font((FONT, 11))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn plot_is_small_self_contained_and_the_same_every_time() {
        let sample = |number: u64| Sample {
            at: Duration::from_secs(number * 5),
            nodes: vec![
                Usage {
                    resident_bytes: number << 20,
                    snapshot: number / 9,
                    ..Usage::default()
                };
                3
            ],
        };
        let samples: Vec<Sample> = (0..2_000).map(sample).collect();
        let plot = svg(&samples, "a title").unwrap();
        assert_eq!(plot, svg(&samples, "a title").unwrap());
        assert!(plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"));
        assert!(
            plot.contains("a title") && !plot.contains("href") && plot.len() < 250_000,
            "{}",
            plot.len()
        );
        svg(&[], "nothing").unwrap();
    }
}
