//! `flamingo generate --interactive`: pictures and text line by line, and a model that stays ready.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use flamingo_data::{ENDOFCHUNK, IMAGE, Interleaved, Picture, printable};
use flamingo_zoo::{Latents, Model};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::json;

use crate::args::{EARLY_STOPPING, GenerateArgs, SearchArgs};
use crate::generate::{open, settings, shown};
use crate::{prompt, tell};

const HELP: &str = "\
TEXT                add text to the prompt, and continue it
an empty line       continue what has been begun
/image PATH         add a picture
/text TEXT          add text without continuing it yet
/shot PATH TEXT     add a demonstration: a picture and the text that belongs to it
/show               print the prompt
/undo               take back the last change of the prompt
/reset              begin a new prompt
/set NAME VALUE     change an option of generate: max-new-tokens, temperature, seed …
/set                print these options
/help               print this
/quit               end, as does Ctrl-D

A path with spaces stands in quotes. A text that begins with / is typed with two of them.";

/// Bytes of a line from a pipe: more than any model reads.
const LONGEST: u64 = 1 << 20;

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let beginning = prompt::read(&args.prompt)?;
    let model = open(&args.model)?;
    settings(&args.search, &model).validate()?;
    let terminal = std::io::stdout().is_terminal();
    let mut lines = Lines::new(terminal)?;
    let mut talk = Talk {
        model: &model,
        search: args.search.clone(),
        json: args.json,
        terminal,
        stopped: Arc::default(),
        prompt: Seen { text: beginning.text, pictures: Vec::new() },
        before: Vec::new(),
    };
    for picture in &beginning.images {
        let latents = talk.look(picture)?;
        talk.prompt.pictures.push(latents);
    }
    if lines.is_terminal() {
        let stopped = talk.stopped.clone();
        ctrlc::set_handler(move || stopped.store(true, Ordering::Relaxed)).context("cannot listen to Ctrl-C")?;
        tell(&format!("{} on {}; /help says what can be typed", model.config().name, model.engine().device()));
    }
    let mut failures = 0usize;
    while let Some(line) = lines.next(if talk.prompt.is_begun() { "… " } else { "> " })? {
        match line.and_then(|line| talk.answer(&line)) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            Err(error) if crate::is_broken_pipe(&error) => return Err(error),
            Err(error) => {
                failures += 1;
                tell(&format!("error: {}", printable(&format!("{error:#}"))));
            }
        }
    }
    // A person has seen it; a script asks for the status.
    ensure!(failures == 0 || lines.is_terminal(), "{failures} of the lines could not be done");
    Ok(())
}

/// Where lines come from.
enum Lines {
    Terminal(Box<DefaultEditor>),
    Plain(std::io::StdinLock<'static>),
}

impl Lines {
    fn new(terminal: bool) -> anyhow::Result<Self> {
        // The editor draws on stdout: where that is a file, lines are read as they come.
        Ok(if terminal && std::io::stdin().is_terminal() {
            Self::Terminal(Box::new(DefaultEditor::new().context("cannot read lines from this terminal")?))
        } else {
            Self::Plain(std::io::stdin().lock())
        })
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line, or why it is none; nothing at the end.
    fn next(&mut self, prompt: &str) -> anyhow::Result<Option<anyhow::Result<String>>> {
        match self {
            Self::Terminal(editor) => loop {
                match editor.readline(prompt) {
                    Ok(line) => {
                        // Without a history lines are as good.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(Ok(line)));
                    }
                    // Ctrl-C leaves the line.
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                }
            },
            Self::Plain(stdin) => {
                let mut bytes = Vec::new();
                stdin.take(LONGEST).read_until(b'\n', &mut bytes).context("cannot read from stdin")?;
                if bytes.is_empty() {
                    return Ok(None);
                }
                ensure!(
                    (bytes.len() as u64) < LONGEST,
                    "a line on stdin is longer than {LONGEST} bytes: make it shorter"
                );
                let line = String::from_utf8(bytes).context("a line is no UTF-8 text");
                Ok(Some(line.map(|line| line.trim_end_matches(['\n', '\r']).to_string())))
            }
        }
    }
}

/// A prompt whose pictures were looked at.
#[derive(Clone, Default)]
struct Seen {
    text: String,
    pictures: Vec<Latents>,
}

impl Seen {
    /// Whether there is something to continue.
    fn is_begun(&self) -> bool {
        !self.text.is_empty() && !self.text.ends_with(ENDOFCHUNK)
    }

    fn add_text(&mut self, text: &str) -> anyhow::Result<()> {
        ensure!(!text.contains(IMAGE), "{IMAGE} in a text has no picture: add one with /image PATH");
        self.text += text;
        Ok(())
    }
}

struct Talk<'m> {
    model: &'m Model,
    search: SearchArgs,
    json: bool,
    /// Whether a person looks at stdout.
    terminal: bool,
    /// Whether Ctrl-C was typed.
    stopped: Arc<AtomicBool>,
    prompt: Seen,
    /// What the prompt was before each change.
    before: Vec<Seen>,
}

impl Talk<'_> {
    /// Does what a line says; breaks at the end.
    fn answer(&mut self, line: &str) -> anyhow::Result<ControlFlow<()>> {
        let Some(command) = line.strip_prefix('/') else {
            return self.change(|talk| talk.ask(line)).map(ControlFlow::Continue);
        };
        let (name, rest) = command.split_once(' ').unwrap_or((command.trim_end(), ""));
        match name {
            _ if name.starts_with('/') => self.change(|talk| talk.ask(command))?,
            "image" => self.change(|talk| {
                let (path, after) = path(rest, true)?;
                ensure!(after.trim().is_empty(), "/image takes a path alone: text goes on a line of its own");
                talk.picture(path)
            })?,
            "text" => self.change(|talk| talk.prompt.add_text(rest))?,
            "shot" => self.change(|talk| talk.shot(rest))?,
            "undo" => self.prompt = self.before.pop().context("there is nothing to take back")?,
            "reset" => self.change(|talk| {
                talk.prompt = Seen::default();
                Ok(())
            })?,
            "show" => self.show()?,
            "set" if rest.trim().is_empty() => self.options()?,
            "set" => self.set(rest)?,
            "help" => self.say(HELP, json!({"help": HELP}))?,
            "quit" | "exit" => return Ok(ControlFlow::Break(())),
            _ => bail!("there is no /{name}: /help lists what there is"),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A change of the prompt, done as a whole or not at all.
    fn change(&mut self, change: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let before = self.prompt.clone();
        let result = change(self);
        match result {
            Ok(()) if self.prompt.text != before.text => self.before.push(before),
            Ok(()) => {}
            Err(_) => self.prompt = before,
        }
        result
    }

    fn look(&self, picture: &Picture) -> anyhow::Result<Latents> {
        let place = if self.model.tells_places() { self.prompt.pictures.len() } else { 0 };
        Ok(self.model.latents(&[picture], place)?.swap_remove(0))
    }

    fn picture(&mut self, path: &str) -> anyhow::Result<()> {
        let latents = self.look(&prompt::open(Path::new(path))?)?;
        self.prompt.text += IMAGE;
        self.prompt.pictures.push(latents);
        Ok(())
    }

    fn shot(&mut self, rest: &str) -> anyhow::Result<()> {
        ensure!(
            !self.prompt.is_begun(),
            "a demonstration stands before what is asked: continue what has been begun with an empty line, or take it \
             back with /undo"
        );
        let (path, text) = path(rest, false)?;
        ensure!(!text.is_empty(), "a demonstration is a picture and a text: /shot PATH TEXT");
        self.picture(path)?;
        self.prompt.add_text(text)?;
        self.prompt.text += ENDOFCHUNK;
        Ok(())
    }

    /// Adds a text and continues the prompt; the answer becomes a demonstration.
    fn ask(&mut self, text: &str) -> anyhow::Result<()> {
        self.prompt.add_text(text)?;
        if !self.prompt.is_begun() {
            return Ok(());
        }
        self.stopped.store(false, Ordering::Relaxed);
        let prompt = Interleaved { text: self.prompt.text.clone(), images: self.prompt.pictures.clone() };
        let settings = settings(&self.search, self.model);
        let mut stdout = std::io::stdout().lock();
        let (mut streamed, mut begun) = (Ok(()), false);
        let start = Instant::now();
        let outputs = self.model.generate_seen(
            std::slice::from_ref(&prompt),
            &settings,
            self.search.upstream_compat,
            &mut |_, piece| {
                if !self.json {
                    begun = true;
                    streamed = stdout.write_all(shown(piece, self.terminal).as_bytes()).and_then(|()| stdout.flush());
                }
                let go_on = streamed.is_ok() && !self.stopped.load(Ordering::Relaxed);
                if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            },
        );
        streamed?;
        if begun || !self.json && outputs.is_ok() {
            writeln!(stdout)?;
        }
        let output = outputs?.swap_remove(0).swap_remove(0);
        ensure!(!self.stopped.load(Ordering::Relaxed), "broken off: the question is taken back");
        if self.json {
            let seconds = start.elapsed().as_secs_f64();
            let answer = json!({
                "prompt": prompt.text, "text": output.text, "ids": output.ids, "score": output.score,
                "finished": output.finished, "seconds": seconds,
            });
            writeln!(stdout, "{answer}")?;
        }
        self.prompt.add_text(&output.text).context("the model wrote a mark itself, so this answer is not kept")?;
        self.prompt.text += ENDOFCHUNK;
        Ok(())
    }

    fn show(&self) -> anyhow::Result<()> {
        let text = &self.prompt.text;
        self.say(text, json!({"prompt": text, "pictures": self.prompt.pictures.len()}))
    }

    /// What was asked for, as text or JSON.
    fn say(&self, text: &str, json: serde_json::Value) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        if self.json {
            writeln!(stdout, "{json}")?;
        } else if self.terminal {
            // Lines of ours are lines there, too.
            text.lines().try_for_each(|line| writeln!(stdout, "{}", printable(line)))?;
        } else {
            writeln!(stdout, "{text}")?;
        }
        Ok(())
    }

    fn options(&self) -> anyhow::Result<()> {
        let SearchArgs {
            max_new_tokens,
            min_new_tokens,
            num_beams,
            length_penalty,
            early_stopping,
            num_return_sequences: _,
            no_repeat_ngram_size,
            sample,
            temperature,
            top_k,
            top_p,
            seed,
            upstream_compat,
        } = &self.search;
        let options = json!({
            "max-new-tokens": max_new_tokens,
            "min-new-tokens": min_new_tokens,
            "no-repeat-ngram-size": no_repeat_ngram_size,
            "num-beams": num_beams,
            "length-penalty": length_penalty,
            "early-stopping": early_stopping,
            "sample": sample,
            "temperature": temperature,
            "top-k": top_k,
            "top-p": top_p,
            "seed": seed,
            "upstream-compat": upstream_compat,
        });
        let lines: Vec<String> = options
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| match value {
                serde_json::Value::Null => format!("{name} off"),
                serde_json::Value::String(text) => format!("{name} {text}"),
                value => format!("{name} {value}"),
            })
            .collect();
        self.say(&lines.join("\n"), options)
    }

    /// Changes an option. What belongs to sampling begins it, more beams end it: here nothing need be said twice.
    fn set(&mut self, rest: &str) -> anyhow::Result<()> {
        let (name, value) = rest.trim().split_once(' ').context("/set takes a name and a value: /set seed 1")?;
        let (name, value) = (name.trim_start_matches('-').replace('_', "-"), value.trim());
        let mut search = self.search.clone();
        match name.as_str() {
            "max-new-tokens" => search.max_new_tokens = parsed(value)?,
            "min-new-tokens" => search.min_new_tokens = parsed(value)?,
            "no-repeat-ngram-size" => search.no_repeat_ngram_size = parsed(value)?,
            "num-beams" => (search.num_beams, search.sample) = (parsed(value)?, false),
            "length-penalty" => search.length_penalty = parsed(value)?,
            "early-stopping" if EARLY_STOPPING.contains(&value) => search.early_stopping = value.into(),
            "early-stopping" => bail!("early-stopping is one of {}", EARLY_STOPPING.join(", ")),
            "sample" => search.sample = parsed(value)?,
            "temperature" => (search.temperature, search.sample) = (parsed(value)?, true),
            "top-k" => (search.top_k, search.sample) = (unless_off(value)?, true),
            "top-p" => (search.top_p, search.sample) = (unless_off(value)?, true),
            "seed" => (search.seed, search.sample) = (parsed(value)?, true),
            "upstream-compat" => search.upstream_compat = parsed(value)?,
            _ => bail!("there is no option {name}: /set alone lists them"),
        }
        settings(&search, self.model).validate()?;
        self.search = search;
        Ok(())
    }
}

fn parsed<T: FromStr>(value: &str) -> anyhow::Result<T> {
    value.parse().ok().with_context(|| format!("`{value}` is no value for this: /set alone shows what it is now"))
}

fn unless_off<T: FromStr>(value: &str) -> anyhow::Result<Option<T>> {
    if value == "off" { Ok(None) } else { parsed(value).map(Some) }
}

/// A path, and the text behind it. It ends with its quote, else with a space, or with the line where it is `alone`.
fn path(rest: &str, alone: bool) -> anyhow::Result<(&str, &str)> {
    let rest = rest.trim_start();
    let (path, text) = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let (path, text) = rest[1..].split_once(quote).context("the quote before the path has no end")?;
            (path, text.strip_prefix(' ').unwrap_or(text))
        }
        _ if alone => (rest.trim_end(), ""),
        _ => rest.split_once(' ').unwrap_or((rest, "")),
    };
    ensure!(!path.is_empty(), "the path of a picture is missing");
    Ok((path, text))
}
