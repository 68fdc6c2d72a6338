//! Draws a dashboard from Prometheus' answers, with its panels where Grafana puts them. Not as Grafana draws: only what is
//! there is the same.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::dashboards::{Field, GridPos, Kind, Panel};
use crate::prometheus::Series;

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A column and a row of a dashboard, in pixels.
const CELL: (i32, i32) = (50, 30);
/// The height of the heading.
const HEADING: i32 = 50;
/// The space between panels.
const GAP: i32 = 6;

const PAPER: RGBColor = RGBColor(244, 245, 245);
const INK: RGBColor = RGBColor(36, 41, 46);
const PALE: RGBColor = RGBColor(110, 118, 128);
const LINES: [RGBColor; 10] = [
    RGBColor(86, 166, 75),
    RGBColor(50, 116, 217),
    RGBColor(224, 47, 68),
    RGBColor(255, 120, 10),
    RGBColor(143, 59, 184),
    RGBColor(242, 204, 12),
    RGBColor(0, 153, 153),
    RGBColor(196, 92, 132),
    RGBColor(124, 102, 64),
    RGBColor(120, 120, 120),
];

/// What a panel shows: its series with their names.
#[derive(Default)]
pub(crate) struct Content {
    series: Vec<(String, Vec<(f64, f64)>)>,
    failures: Vec<String>,
}

impl Content {
    /// Adds what a query has yielded.
    pub(crate) fn add(&mut self, legend: &str, query: &str, answer: Result<Vec<Series>, String>) {
        let before = self.series.len();
        match answer {
            Err(error) => self.failures.push(format!("{error}: {query}")),
            Ok(answer) => {
                for series in answer {
                    let numbers: Vec<_> =
                        series.points.iter().copied().filter(|(_, value)| value.is_finite()).collect();
                    if !numbers.is_empty() {
                        let named = series.labels.iter().fold(legend.to_owned(), |text, (label, value)| {
                            text.replace(&format!("{{{{{label}}}}}"), value)
                        });
                        self.series.push((named, numbers));
                    }
                }
                // Prometheus answers in any order.
                self.series[before..].sort_by(|(one, _), (other, _)| one.cmp(other));
                if self.series.len() == before {
                    self.failures.push(format!("no data: {query}"));
                }
            }
        }
    }

    /// The queries that failed or yielded nothing. A heading has none.
    pub(crate) fn without_data(&self) -> impl Iterator<Item = &String> {
        self.failures.iter()
    }
}

/// Draws a dashboard into a file.
pub(crate) fn draw(file: &Path, title: &str, panels: &[Panel], contents: &[Content], window: (f64, f64)) {
    let rows = panels.iter().map(|panel| panel.grid_pos.y + panel.grid_pos.h).max().unwrap_or(0);
    let size = (24 * CELL.0, HEADING + rows * CELL.1);
    let canvas = SVGBackend::new(file, (size.0.cast_unsigned(), size.1.cast_unsigned())).into_drawing_area();
    canvas.fill(&PAPER).unwrap();
    text(&canvas, title, (12, 14), 20, INK);
    let seconds = window.1 - window.0;
    let source =
        format!("drawn from Prometheus' answers: {seconds:.0} seconds of a test's network under load");
    text(&canvas, &source, (420, 19), 12, PALE);
    for (panel, content) in panels.iter().zip(contents) {
        let GridPos { x, y, w, h } = panel.grid_pos;
        let corner = (x * CELL.0 + GAP / 2, HEADING + y * CELL.1 + GAP / 2);
        let area = canvas.clone().shrink(corner, (w * CELL.0 - GAP, h * CELL.1 - GAP));
        match panel.kind {
            Kind::Row => text(&area, &panel.title, (8, 5), 15, INK),
            Kind::Stat => stat(&area, panel, content),
            Kind::Timeseries => lines(&area, panel, content, window),
        }
    }
    canvas.present().unwrap();
}

/// A number for each series.
fn stat(area: &Canvas<'_>, panel: &Panel, content: &Content) {
    frame(area, panel);
    let (width, height) = size(area);
    let field = &panel.field_config.defaults;
    let count = i32::try_from(content.series.len()).unwrap().max(1);
    for (number, (name, points)) in content.series.iter().enumerate() {
        let value = points.last().map_or(f64::NAN, |(_, value)| *value);
        let (shown, color) = shown(field, value);
        let middle = (width * i32::try_from(number).unwrap() + width / 2) / count;
        let size = if count > 2 { 20 } else { 26 };
        centered(area, &shown, (middle, height / 2 + 4), size, color);
        centered(area, name, (middle, height - 14), 11, PALE);
    }
}

struct Line<'a> {
    name: &'a str,
    color: RGBColor,
    is_idle: bool,
    /// With what it stands on.
    points: Vec<(f64, f64)>,
}

/// A line for each series; areas where they stand on each other.
fn lines(area: &Canvas<'_>, panel: &Panel, content: &Content, window: (f64, f64)) {
    frame(area, panel);
    let field = &panel.field_config.defaults;
    let mut drawn: Vec<Line<'_>> = Vec::new();
    for (number, (name, points)) in content.series.iter().enumerate() {
        let color = panel.color_of(name).map_or(LINES[number % LINES.len()], color);
        let is_idle = points.iter().all(|(_, value)| *value == 0.0);
        let mut points: Vec<_> = points.iter().map(|(at, value)| (at - window.0, *value)).collect();
        if let (true, Some(below)) = (panel.is_stacked(), drawn.last()) {
            for (at, value) in &mut points {
                let mut below = below.points.iter().rev();
                *value += below.find(|(before, _)| before <= at).map_or(0.0, |(_, value)| *value);
            }
        }
        drawn.push(Line { name, color, is_idle, points });
    }
    let values = drawn.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
    let top = values.fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.1 } else { 1.0 };

    let (width, height) = size(area);
    let chart = area.clone().shrink((6, 26), (width - 14, height - 26 - 36));
    let mut chart = ChartBuilder::on(&chart)
        .x_label_area_size(16)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..(window.1 - window.0), 0.0..top)
        .unwrap();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(RGBColor(228, 231, 231))
        .light_line_style(TRANSPARENT)
        .axis_style(RGBColor(200, 204, 208))
        .label_style(("sans-serif", 10).into_font().color(&PALE))
        .x_labels(6)
        .y_labels(4)
        .x_label_formatter(&|seconds| format!("{seconds:.0} s"))
        // Where there are only whole numbers, nothing stands between them.
        .y_label_formatter(&|value| {
            let between = field.decimals == Some(0) && value.fract() != 0.0;
            if between { String::new() } else { quantity(field, *value) }
        })
        .draw()
        .unwrap();
    // The highest first, so that each covers what stands below it.
    for Line { color, points, .. } in drawn.iter().rev() {
        if panel.is_stacked() {
            let fill = color.mix(0.35);
            chart.draw_series(AreaSeries::new(points.iter().copied(), 0.0, PAPER)).unwrap();
            chart
                .draw_series(AreaSeries::new(points.iter().copied(), 0.0, fill).border_style(*color))
                .unwrap();
        } else {
            chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(1))).unwrap();
        }
    }
    legend(area, &drawn);
}

/// The names of the lines, in two rows at most; of those that are always 0, only how many.
fn legend(area: &Canvas<'_>, lines: &[Line<'_>]) {
    let (width, height) = size(area);
    let (mut x, mut y) = (10, height - 32);
    let (mut named, idle): (Vec<_>, Vec<_>) = lines.iter().partition(|line| !line.is_idle);
    if named.is_empty() {
        named.extend(&idle);
    }
    for (number, Line { name, color, .. }) in named.iter().enumerate() {
        let wide = 24 + i32::try_from(name.chars().count()).unwrap() * 6;
        if x + wide > width - 60 {
            if y > height - 32 {
                return text(area, &format!("{} more", named.len() - number), (x, y), 10, PALE);
            }
            (x, y) = (10, y + 14);
        }
        area.draw(&Rectangle::new([(x, y + 3), (x + 10, y + 6)], color.filled())).unwrap();
        text(area, name, (x + 14, y), 10, INK);
        x += wide;
    }
    if !idle.is_empty() && named.len() < lines.len() {
        text(area, &format!("{} at 0", idle.len()), (x, y), 10, PALE);
    }
}

fn size(area: &Canvas<'_>) -> (i32, i32) {
    let (width, height) = area.dim_in_pixel();
    (width.cast_signed(), height.cast_signed())
}

fn frame(area: &Canvas<'_>, panel: &Panel) {
    let (width, height) = size(area);
    let corner = (width - 1, height - 1);
    area.draw(&Rectangle::new([(0, 0), corner], WHITE.filled())).unwrap();
    area.draw(&Rectangle::new([(0, 0), corner], RGBColor(221, 224, 226))).unwrap();
    text(area, &panel.title, (10, 8), 13, INK);
}

fn text(area: &Canvas<'_>, text: &str, at: (i32, i32), size: u32, color: RGBColor) {
    area.draw(&Text::new(text.to_owned(), at, ("sans-serif", size).into_font().color(&color))).unwrap();
}

fn centered(area: &Canvas<'_>, text: &str, at: (i32, i32), size: u32, color: RGBColor) {
    let style = ("sans-serif", size)
        .into_font()
        .transform(FontTransform::None)
        .color(&color)
        .pos(Pos::new(HPos::Center, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style)).unwrap();
}

/// How a number looks, and its colour.
fn shown(field: &Field, value: f64) -> (String, RGBColor) {
    let mapped = field.mappings.iter().find_map(|mapping| mapping.options.get(&value.to_string()));
    if let Some(mapped) = mapped {
        return (mapped.text.clone(), color(&mapped.color));
    }
    let mut steps = field.thresholds.steps.iter().rev();
    let step = steps.find(|step| step.value.is_none_or(|from| value >= from));
    (quantity(field, value), step.map_or(INK, |step| color(&step.color)))
}

fn color(name: &str) -> RGBColor {
    match name {
        "green" => RGBColor(55, 135, 45),
        "orange" => RGBColor(224, 100, 0),
        "red" => RGBColor(196, 22, 42),
        "blue" => RGBColor(31, 96, 196),
        other => panic!("no colour {other}"),
    }
}

/// A number with its unit.
fn quantity(field: &Field, value: f64) -> String {
    let plain = |value: f64| match field.decimals {
        Some(decimals) => format!("{value:.decimals$}"),
        None => {
            let text = format!("{value:.2}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    };
    match field.unit.as_str() {
        "s" if value.abs() < 1.0 && value != 0.0 => format!("{:.0} ms", value * 1000.0),
        "s" => format!("{} s", plain(value)),
        "percentunit" => format!("{} %", plain(value * 100.0)),
        "reqps" => format!("{} req/s", plain(value)),
        "ops" => format!("{} /s", plain(value)),
        "none" | "short" => plain(value),
        other => panic!("no unit {other}"),
    }
}
