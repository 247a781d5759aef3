//! `flamingo generate`.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use flamingo_data::printable;
use flamingo_generate::{EarlyStopping, GenerationConfig, Strategy};
use flamingo_zoo::Model;
use indicatif::ProgressBar;
use serde_json::json;

use crate::args::{GenerateArgs, ModelArgs, SearchArgs};
use crate::{prompt, talk};

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    if args.interactive {
        return talk::run(args);
    }
    // What is wrong with the pictures is found before a model is loaded.
    let prompt = prompt::build(&args.prompt)?;
    let start = Instant::now();
    let model = open(&args.model)?;
    let load = start.elapsed();
    let settings = settings(&args.search, &model);
    settings.validate()?;

    let start = Instant::now();
    let mut stdout = std::io::stdout().lock();
    let stream = !args.json && args.search.num_return_sequences == 1;
    let mut streamed = Ok(());
    let terminal = std::io::stdout().is_terminal();
    let upstream_compat = args.search.upstream_compat;
    let outputs = model.generate(std::slice::from_ref(&prompt), &settings, upstream_compat, &mut |_, piece| {
        if stream {
            streamed = stdout.write_all(shown(piece, terminal).as_bytes()).and_then(|()| stdout.flush());
        }
        if streamed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    streamed?;
    let elapsed = start.elapsed();

    let outputs = &outputs[0];
    if args.json {
        let sequences: Vec<_> = outputs
            .iter()
            .map(|o| json!({"text": o.text, "ids": o.ids, "score": o.score, "finished": o.finished}))
            .collect();
        let result = json!({
            "model": model.config().name,
            "device": model.engine().device(),
            "prompt": prompt.text,
            "sequences": sequences,
            "load_seconds": load.as_secs_f64(),
            "generate_seconds": elapsed.as_secs_f64(),
        });
        writeln!(stdout, "{result}")?;
    } else if stream {
        writeln!(stdout)?;
    } else {
        for output in outputs {
            writeln!(stdout, "{}", shown(&output.text, terminal))?;
        }
    }
    let tokens: usize = outputs.iter().map(|o| o.ids.len()).sum();
    tracing::info!(device = model.engine().device(), ?load, ?elapsed, tokens, "done");
    Ok(())
}

/// A terminal gets what is harmless there, a file or a pipe what was written.
pub fn shown(text: &str, terminal: bool) -> Cow<'_, str> {
    if terminal { printable(text).into() } else { text.into() }
}

/// What was asked for, for a model.
pub fn settings(args: &SearchArgs, model: &Model) -> GenerationConfig {
    let strategy = if args.sample {
        let (temperature, seed) = (args.temperature, args.seed);
        Strategy::Sample { temperature: temperature as f32, top_k: args.top_k, top_p: args.top_p, seed }
    } else if args.num_beams == 1 {
        Strategy::Greedy
    } else {
        Strategy::Beam {
            num_beams: args.num_beams,
            length_penalty: args.length_penalty,
            early_stopping: match args.early_stopping.as_str() {
                "true" => EarlyStopping::True,
                "never" => EarlyStopping::Never,
                _ => EarlyStopping::False,
            },
        }
    };
    GenerationConfig {
        min_new_tokens: args.min_new_tokens,
        no_repeat_ngram_size: args.no_repeat_ngram_size,
        num_return_sequences: args.num_return_sequences,
        strategy,
        ..model.settings(args.max_new_tokens)
    }
}

/// Opens a model, with a spinner while a large one loads.
pub fn open(args: &ModelArgs) -> anyhow::Result<Model> {
    let folder = args.zoo.find(&args.model)?;
    let spinner = ProgressBar::new_spinner().with_message(format!("loading {}", args.model));
    spinner.enable_steady_tick(Duration::from_millis(120));
    let model = Model::open(&folder, args.device, args.precision);
    spinner.finish_and_clear();
    Ok(model?)
}
