//! `flamingo inspect`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use flamingo_config::{ModelConfig, Scheme};
use flamingo_data::printable;
use flamingo_weights::{Dtype, Format, ModelFolder, layout};
use flamingo_zoo::parts;
use serde_json::json;

use crate::args::InspectArgs;
use crate::models::count;

pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let (config, dtypes) = match args.zoo.find(&args.model) {
        Ok(folder) => {
            let folder = ModelFolder::open(&folder)?;
            (folder.config().clone(), dtypes(&folder))
        }
        Err(missing) => match config_alone(Path::new(&args.model), &args.zoo.folder().join(&args.model))? {
            Some(config) => (config, BTreeMap::new()),
            None => bail!(missing),
        },
    };
    let parts = parts(&config);
    let total: u64 = parts.iter().map(|p| p.parameters).sum();
    // Keys and values of every layer, and of the cross-attention for one image, for one sequence in f32.
    let a = config.decoder.architecture();
    let per_token = (2 * a.n_layers * a.d_model * 4) as u64;
    let x = &config.cross_attention;
    let blocks = (0..a.n_layers).filter(|&layer| x.has_block(layer)).count();
    let largest = layout(&config).iter().map(|spec| spec.shape.iter().product::<usize>()).max().unwrap_or(0) as u64;
    let per_image = (2 * blocks * config.resampler.num_latents * x.heads * x.dim_head * 4) as u64;

    let mut stdout = std::io::stdout().lock();
    if args.json {
        let sizes: BTreeMap<_, _> = parts.iter().map(|p| (p.name, p.parameters)).collect();
        let result = json!({
            "config": config,
            "parameters": sizes,
            "total_parameters": total,
            "stored_as": dtypes,
            "bytes": {
                "weights_f32": total * 4,
                "weights_f16": total * 2,
                "cache_per_token_f32": per_token,
                "cache_per_image_f32": per_image,
                "largest_tensor_f32": largest * 4,
            },
        });
        writeln!(stdout, "{result}")?;
        return Ok(());
    }
    writeln!(stdout, "{}", printable(&config.name))?;
    for part in &parts {
        writeln!(stdout, "  {:<16} {:>9}", part.name, count(part.parameters))?;
    }
    writeln!(stdout, "  {:<16} {:>9}", "total", count(total))?;
    for (dtype, tensors) in &dtypes {
        writeln!(stdout, "stored as {dtype}: {tensors} tensors")?;
    }
    writeln!(stdout, "\nmemory; activations come on top")?;
    writeln!(stdout, "{:<34} {:>10} {:>12} {:>12}", "device and --precision", "weights", "one token", "one image")?;
    // A CPU keeps weights in 16 bits or fewer and computes in 32.
    let stored = |dtype, scheme| layout(&config).iter().map(|spec| spec.bytes(Format { dtype, scheme })).sum::<u64>();
    let rows = [
        ("any: f32", stored(Dtype::F32, None), 1),
        ("flex: f16, bf16", stored(Dtype::F16, None), 1),
        ("flex: q8", stored(Dtype::F16, Some(Scheme::Q8)), 1),
        ("flex: q4", stored(Dtype::F16, Some(Scheme::Q4)), 1),
        ("cuda, many GPUs: f16, bf16", stored(Dtype::F16, None), 2),
    ];
    for (device, weights, of_cache) in rows {
        let sizes = [weights, per_token / of_cache, per_image / of_cache].map(bytes);
        writeln!(stdout, "{device:<34} {:>10} {:>12} {:>12}", sizes[0], sizes[1], sizes[2])?;
    }
    writeln!(stdout, "largest tensor: {} in f32, which a GPU must take as one buffer", bytes(largest * 4))?;
    write!(stdout, "\n{}", printable(&config.to_toml()))?;
    Ok(())
}

/// The config of a folder without weights.
fn config_alone(path: &Path, by_name: &Path) -> anyhow::Result<Option<ModelConfig>> {
    for folder in [path, by_name] {
        let file = folder.join("model.toml");
        if file.is_file() {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let config = ModelConfig::from_toml(&text).with_context(|| format!("cannot use {}", file.display()))?;
            return Ok(Some(config));
        }
    }
    Ok(None)
}

/// How many tensors are stored in each type.
fn dtypes(folder: &ModelFolder) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for spec in layout(folder.config()) {
        let quantised = || Some(folder.quantised(&spec.name)?.scheme.to_string());
        let stored = folder.tensor(&spec.name).map(|tensor| tensor.dtype.to_string()).or_else(quantised);
        if let Some(stored) = stored {
            *count.entry(stored).or_insert(0) += 1;
        }
    }
    count
}

/// A number of bytes in three or four digits.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n >= 1024f64.powi(3) => format!("{:.2} GiB", n / 1024f64.powi(3)),
        n if n >= 1024f64.powi(2) => format!("{:.1} MiB", n / 1024f64.powi(2)),
        n => format!("{:.1} KiB", n / 1024.0),
    }
}
