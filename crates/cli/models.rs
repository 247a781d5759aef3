//! `flamingo models`.

use std::io::Write;

use flamingo_data::printable;
use flamingo_zoo::{list, parts};
use serde_json::json;

use crate::args::ModelsArgs;

pub fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    let entries = list(&args.zoo.folder())?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let rows: Vec<_> = entries
            .iter()
            .map(|entry| match &entry.config {
                Ok(config) => json!({
                    "name": entry.name,
                    "family": config.decoder.family(),
                    "parameters": parts(config).iter().map(|p| p.parameters).sum::<u64>(),
                    "cross_attn_every_n_layers": config.cross_attention.every_n_layers,
                    "weights": entry.weights,
                    "path": entry.path,
                }),
                Err(error) => json!({"name": entry.name, "error": error.to_string()}),
            })
            .collect();
        writeln!(stdout, "{}", serde_json::Value::Array(rows))?;
        return Ok(());
    }
    writeln!(stdout, "{:<26} {:<11} {:>10} {:>11} {:>8}", "name", "decoder", "parameters", "cross-attn", "on disk")?;
    for entry in &entries {
        let name = printable(&entry.name);
        match &entry.config {
            Ok(config) => {
                let parameters: u64 = parts(config).iter().map(|p| p.parameters).sum();
                writeln!(
                    stdout,
                    "{:<26} {:<11} {:>10} {:>11} {:>8}",
                    name,
                    config.decoder.family(),
                    count(parameters),
                    format!("every {}", config.cross_attention.every_n_layers),
                    if entry.weights { "yes" } else { "no" },
                )?;
            }
            Err(error) => writeln!(stdout, "{name:<26} unusable: {}", printable(&error.to_string()))?,
        }
    }
    Ok(())
}

/// A number of parameters in three digits: 2.74 B, 87.6 M, 41.2 K.
pub fn count(n: u64) -> String {
    let n = n as f64;
    let (value, unit) = match n {
        n if n >= 1e9 => (n / 1e9, "B"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n => (n / 1e3, "K"),
    };
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {unit}")
}
