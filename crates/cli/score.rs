//! `flamingo score`.

use std::io::Write;

use flamingo_data::printable;
use serde_json::json;

use crate::args::ScoreArgs;
use crate::{generate, prompt};

pub fn run(args: &ScoreArgs) -> anyhow::Result<()> {
    let prompt = prompt::build(&args.prompt)?;
    let model = generate::open(&args.model)?;
    let scores = model.score(&prompt, &args.candidates)?;

    let mut stdout = std::io::stdout().lock();
    if args.json {
        let candidates: Vec<_> = args
            .candidates
            .iter()
            .zip(&scores)
            .map(|(text, s)| json!({"text": text, "log_likelihood": s.total, "mean": s.mean, "tokens": s.tokens}))
            .collect();
        let result = json!({"model": model.config().name, "prompt": prompt.text, "candidates": candidates});
        writeln!(stdout, "{result}")?;
        return Ok(());
    }
    let mut best: Vec<_> = args.candidates.iter().zip(&scores).collect();
    best.sort_by(|a, b| b.1.mean.total_cmp(&a.1.mean));
    writeln!(stdout, "{:>12} {:>12} {:>7}  candidate", "mean", "sum", "tokens")?;
    for (text, score) in best {
        writeln!(stdout, "{:>12.5} {:>12.5} {:>7}  {}", score.mean, score.total, score.tokens, printable(text))?;
    }
    Ok(())
}
