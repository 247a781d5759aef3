//! `flamingo data inspect`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use flamingo_data::{
    Distribution, DocumentRules, InspectOptions, Samples, Summary, Tokenizer, find_shards, inspect, printable,
};
use flamingo_plot::{Content, Curve, Panel, draw};

use super::args::InspectArgs;
use super::progress;
use crate::inspect::bytes;
use crate::plot::{check_place, write_whole};

pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    args.plot.as_deref().map_or(Ok(()), check_place)?;
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::open).transpose()?.map(Arc::new);
    let (min_num_images, max_num_images) = (args.min_num_images, args.max_num_images);
    let rules = DocumentRules { min_num_images, max_num_images, min_bytes: args.min_bytes, ..DocumentRules::default() };
    let shards = shards(&args.shards)?;
    let total = shards.iter().filter_map(|shard| Some(std::fs::metadata(shard).ok()?.len())).sum();
    let bar = progress(total)?;
    let summary = inspect(&shards, &InspectOptions { rules, tokenizer }, &mut |read| bar.inc(read));
    bar.finish_and_clear();
    let summary = summary?;
    if let Some(file) = &args.plot {
        let panels = panels(&summary);
        if panels.is_empty() {
            bail!("there are no documents with similarities, so there is nothing to draw: leave --plot out");
        }
        write_whole(file, &draw(&panels)?)?;
    }
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string(&summary)?)?;
        return Ok(());
    }
    tables(&mut stdout, &summary)?;
    Ok(())
}

/// The files that arguments stand for: patterns as in training, and folders with all shards in them.
fn shards(arguments: &[String]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for argument in arguments {
        if !Path::new(argument).is_dir() {
            found.extend(find_shards(argument)?);
            continue;
        }
        let entries = std::fs::read_dir(argument).with_context(|| format!("cannot read {argument}"))?;
        let known = |path: &std::path::PathBuf| {
            path.extension().is_some_and(|extension| ["tar", "jsonl", "zip"].iter().any(|known| extension == *known))
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(known).collect();
        if paths.is_empty() {
            bail!("{argument} holds no shards: give a folder with .tar, .jsonl or .zip files");
        }
        paths.sort();
        found.extend(paths.iter().map(|path| path.to_string_lossy().into_owned()));
    }
    Ok(found)
}

fn tables(out: &mut impl Write, summary: &Summary) -> std::io::Result<()> {
    let Samples { pairs, documents, generated, unknown } = summary.samples;
    let size = bytes(summary.members.values().map(|members| members.bytes).sum());
    writeln!(out, "{} shard(s), {size}", summary.shards)?;
    writeln!(out, "samples    pairs {pairs}  documents {documents}  generated {generated}  unknown {unknown}")?;
    let members: Vec<String> = summary
        .members
        .iter()
        .map(|(extension, members)| format!("{} {} ({})", printable(extension), members.count, bytes(members.bytes)))
        .collect();
    writeln!(out, "members    {}", members.join("  "))?;
    for (name, counts) in [("pictures", &summary.formats), ("unusable", &summary.unusable), ("damage", &summary.damage)]
    {
        if !counts.is_empty() {
            writeln!(out, "{name:<10} {}", listed(counts))?;
        }
    }
    let rows = [
        ("width", summary.width),
        ("height", summary.height),
        ("bytes of a picture", summary.picture_bytes),
        ("characters of a caption", summary.captions.characters),
        ("tokens of a caption", summary.captions.tokens),
        ("characters of a document", summary.texts.characters),
        ("tokens of a document", summary.texts.tokens),
        ("pictures of a document", summary.pictures_per_document),
    ];
    writeln!(
        out,
        "\n{:<25}{:>9}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>9}",
        "", "count", "min", "5%", "25%", "50%", "75%", "95%", "max"
    )?;
    for (name, row) in rows {
        let Some(Distribution { count, min, p05, p25, p50, p75, p95, max, .. }) = row else { continue };
        writeln!(out, "{name:<25}{count:>9}{min:>8}{p05:>8}{p25:>8}{p50:>8}{p75:>8}{p95:>8}{max:>9}")?;
    }
    similarities(out, summary)
}

fn similarities(out: &mut impl Write, summary: &Summary) -> std::io::Result<()> {
    let (bars, pictures) = (&summary.similarity, summary.similarity.counts.iter().sum::<u64>());
    let Some(&highest) = bars.counts.iter().max() else { return Ok(()) };
    writeln!(out, "\nsimilarity of each picture to its sentence")?;
    for (i, &count) in bars.counts.iter().enumerate() {
        let line = "#".repeat((count as f64 / highest as f64 * 40.0).ceil() as usize);
        writeln!(out, "{:>6.2} {count:>8}  {line}", bars.start + bars.width * i as f64)?;
    }
    writeln!(out, "\n{:<10}{:>10}{:>7}{:>12}{:>7}", "threshold", "documents", "%", "pictures", "%")?;
    for kept in &summary.thresholds {
        let (documents, pictures) = (share(kept.documents, summary.samples.documents), share(kept.pictures, pictures));
        writeln!(
            out,
            "{:<10.2}{:>10}{documents:>7.1}{:>12}{pictures:>7.1}",
            kept.threshold, kept.documents, kept.pictures
        )?;
    }
    Ok(())
}

fn share(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

fn listed(counts: &BTreeMap<String, u64>) -> String {
    counts.iter().map(|(kind, count)| format!("{count} {}", printable(kind))).collect::<Vec<_>>().join("  ")
}

/// The similarities, and what thresholds keep of them; none without documents.
fn panels(summary: &Summary) -> Vec<Panel> {
    let bars = &summary.similarity;
    let pictures = bars.counts.iter().sum();
    if pictures == 0 {
        return Vec::new();
    }
    let (start, width, counts) = (bars.start, bars.width, bars.counts.clone());
    let curve = |name: &str, colour, part: &dyn Fn(&flamingo_data::Kept) -> f64| Curve {
        name: Some(name.into()),
        colour,
        faint: false,
        points: summary.thresholds.iter().map(|kept| (kept.threshold, part(kept))).collect(),
        intervals: Vec::new(),
    };
    let curves = vec![
        curve("documents", 0, &|kept| share(kept.documents, summary.samples.documents)),
        curve("pictures", 1, &|kept| share(kept.pictures, pictures)),
    ];
    let panel = |title: &str, x: &str, y: &str, content| {
        let (title, x, y) = (title.into(), x.into(), y.into());
        Panel { title, x, y, content }
    };
    vec![
        panel(
            "Similarity of each picture to its sentence",
            "similarity",
            "pictures",
            Content::Bars { start, width, counts },
        ),
        panel("What a threshold keeps", "threshold", "%", Content::Curves { curves, log: false }),
    ]
}
