#!/usr/bin/env python3
"""Makes tagger.txt.gz, verbs.txt and verb_exceptions.txt from the packages that README.md names.

usage: make.py <misaki-rs>/src/resources/tagger <wordnet-base>/usr/share/wordnet

The first folder is in the crate's source (~/.cargo/registry/src after `cargo fetch`), the second in the Debian package
(apt-get download wordnet-base; dpkg -x wordnet-base*.deb .).
"""

import gzip
import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = {
    "weights.json": "789e8e35f6fac656d9b7eccea29ba4e8a137cbb5b525dd31f39e4291a9e80832",
    "tags.json": "4c713731cb06727736962bc8cd94ad919217a040e76691059af99bc0c2c9c246",
    "classes.txt": "7812cb7945022cb348bc6670b3eb7c76cdd50920715e86681337adfbf9c85253",
    "index.verb": "e2ac24816c3a8289dcb72aaa9cf8db81fdf25ec34d792bfc96ac5b7a20c8b4ae",
    "verb.exc": "dbbcf9a601b2d77e934e413b91d90e88ec7f933a8b77cfc00602a923b891b42c",
}


def source(folder, name):
    data = (Path(folder) / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert digest == SOURCES[name], f"{name}: sha256 {digest}"
    return data.decode("utf-8")


def tagger(folder):
    classes = sorted(source(folder, "classes.txt").split())
    letter = {tag: chr(ord("A") + number) for number, tag in enumerate(classes)}
    words = sorted(json.loads(source(folder, "tags.json")).items())
    lines = [" ".join(classes), str(len(words))]
    lines += [f"{word}\t{letter[tag]}" for word, tag in words]
    for feature, weights in sorted(json.loads(source(folder, "weights.json")).items()):
        milli = {tag: round(weight * 1000) for tag, weight in weights.items()}
        assert all(milli[tag] / 1000 == weights[tag] for tag in weights), feature
        if milli:
            lines.append(feature + "\t" + "".join(f"{letter[tag]}{milli[tag]}" for tag in sorted(milli)))
    text = "\n".join(lines) + "\n"
    (HERE / "tagger.txt.gz").write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def wordnet(folder):
    verbs = [line.split()[0] for line in source(folder, "index.verb").splitlines() if not line.startswith(" ")]
    (HERE / "verbs.txt").write_text("\n".join(verbs) + "\n")
    # A form that is listed twice means its last line, as in NLTK.
    exceptions = dict(line.split(maxsplit=1) for line in source(folder, "verb.exc").splitlines())
    kept = [f"{form} {lemmas}" for form, lemmas in exceptions.items() if form.endswith("ing")]
    (HERE / "verb_exceptions.txt").write_text("\n".join(kept) + "\n")


if __name__ == "__main__":
    tagger(sys.argv[1])
    wordnet(sys.argv[2])
