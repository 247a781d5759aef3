//! Shards: what belongs together, what is damaged, what patterns mean.

use std::ops::ControlFlow;

use flamingo_data::{Picture, Sample, Skipped, expand, read_samples};

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).expect("a member");
    }
    builder.into_inner().expect("an archive")
}

fn read(shard: &[u8]) -> (Vec<Sample>, Skipped) {
    let mut samples = Vec::new();
    let skipped = read_samples(shard, &mut |sample| {
        samples.push(sample);
        ControlFlow::Continue(())
    });
    (samples, skipped)
}

fn summary(samples: &[Sample]) -> Vec<String> {
    let extensions = |sample: &Sample| sample.parts.keys().cloned().collect::<Vec<_>>().join("+");
    samples.iter().map(|sample| format!("{} {}", sample.key, extensions(sample))).collect()
}

#[test]
fn members_belong_together_by_name() {
    let shard = tar(&[
        ("a/001.jpg", b"picture"),
        ("a/001.TXT", b"a cat"),
        ("a/001.txt", b"twice"),
        ("__meta__/own.json", b"{}"),
        ("readme", b"no extension"),
        ("a/.hidden", b"no key"),
        ("b.v2/002.seg.png", b"picture"),
        ("b.v2/002.json", b"{}"),
    ]);
    let (samples, skipped) = read(&shard);
    assert_eq!(summary(&samples), ["a/001 jpg+txt", "b.v2/002 json+seg.png"]);
    assert_eq!(samples[0].parts["txt"], b"a cat");
    assert_eq!(skipped, Skipped { members: 3, duplicates: 1, ..Skipped::default() });
}

/// What webdataset 0.2.100 makes of names with underscores.
#[test]
fn only_folders_between_underscores_are_the_packages_own() {
    let names = ["__x.png", "__meta__.json", "a/__m__/1.png", "___/4.png", "__.png"];
    let own = ["__meta__/1.png", "__a__/b/2.png", "____/3.png"];
    let shard =
        tar(&[&own[..], &names[..], &own[..]].concat().iter().map(|name| (*name, &b"x"[..])).collect::<Vec<_>>());
    let (samples, skipped) = read(&shard);
    let keys = ["__x png", "__meta__ json", "a/__m__/1 png", "___/4 png", "__ png"];
    assert_eq!(summary(&samples), keys);
    assert_eq!(skipped, Skipped { members: 6, ..Skipped::default() });
}

#[test]
fn reading_stops_when_told_to() {
    let shard = tar(&[("1.txt", b"1"), ("2.txt", b"2"), ("3.txt", b"3")]);
    let mut seen = 0;
    read_samples(&shard[..], &mut |_| {
        seen += 1;
        if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(seen, 2);
}

#[test]
fn damaged_shards_give_what_comes_before_the_damage() {
    let contents: Vec<(String, Vec<u8>)> = (0..20).map(|i| (format!("{i:03}.txt"), vec![b'x'; 700])).collect();
    let members: Vec<(&str, &[u8])> = contents.iter().map(|(name, content)| (&name[..], &content[..])).collect();
    let shard = tar(&members);
    assert_eq!(read(&shard).0.len(), 20);
    for cut in (0..shard.len() - 1024).step_by(97) {
        let (samples, skipped) = read(&shard[..cut]);
        // Each member takes a block of header and two of content.
        assert!(samples.len() <= cut / 1024, "{cut}");
        assert!(samples.iter().all(|sample| sample.parts["txt"].len() == 700), "{cut}");
        assert!(skipped.cut == 1 || cut % 512 == 0 || samples.len() == cut / 1536, "{cut}");
    }
    let mut state = 3u32;
    for _ in 0..500 {
        let mut damaged = shard.clone();
        for _ in 0..8 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = state as usize % damaged.len();
            damaged[at] ^= (state >> 24) as u8;
        }
        read(&damaged);
    }
    assert_eq!(read(b"not a tar file").0, []);
    assert_eq!(read(b""), (Vec::new(), Skipped::default()));
}

#[test]
fn patterns_are_those_of_webdataset() {
    let names = |pattern: &str| expand(pattern).expect("names");
    assert_eq!(names("a.tar"), ["a.tar"]);
    assert_eq!(names("a-{08..11}.tar"), ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]);
    assert_eq!(names("{1..3}"), ["1", "2", "3"]);
    assert_eq!(names("{3..1}"), ["3", "2", "1"]);
    assert_eq!(names("{a,b}/{0..1}.tar"), ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]);
    assert_eq!(names("a.tar::b-{0..1}.tar"), ["a.tar", "b-0.tar", "b-1.tar"]);
    for bad in ["", "::", "a{", "a{0..}", "a{}", "a{x}", "{0..99999999999}", "{0..9999}{0..9999}", "{..3}", "{1..a}"] {
        assert!(expand(bad).is_err(), "{bad}");
    }
    // Braces around no choice are more likely a slip than a name.
    for bad in ["{pairs-{0000,0001}}.tar", "{a,b{x}}", "{{0..9}", "a}", "}{", "{a,{0..999999}}{b,c}", r"{a\,b}"] {
        assert!(expand(bad).is_err(), "{bad}");
    }
}

/// 100 pairs of which ten members are damaged: headers, whole members, contents.
#[test]
fn damage_takes_its_own_samples_along_and_no_others() {
    let text: Vec<(String, Vec<u8>)> = (0..100)
        .flat_map(|i| [(format!("{i:03}.jpg"), vec![i + 1; 700]), (format!("{i:03}.txt"), vec![b'a' + i % 26; 20])])
        .collect();
    let members: Vec<(&str, &[u8])> = text.iter().map(|(name, content)| (&name[..], &content[..])).collect();
    let sound = tar(&members);
    // A pair takes three blocks and two.
    let block = |pair: usize, block: usize| 512 * (5 * pair + block);
    let mut shard = sound.clone();
    shard[block(5, 0) + 150] ^= 1; // The sum of a picture's header.
    shard[block(6, 3)] ^= 1; // The name of a caption.
    shard[block(20, 0) + 130] ^= 4; // A length, wrong in either direction.
    shard[block(21, 3) + 129] ^= 2;
    shard[block(30, 0) + 300] = 1; // What is nobody's.
    shard[block(40, 3)..block(41, 0)].fill(0); // As a disk loses it: a caption, ...
    shard[block(50, 0)..block(51, 0)].fill(0); // ... a pair, ...
    shard[block(60, 0)..block(60, 1)].fill(0xff); // ... a header.
    shard[block(70, 1) + 9] ^= 1; // Contents: for others to find.
    shard[block(99, 3) + 148] = b'x'; // The last header of all.
    let (samples, skipped) = read(&shard);
    assert_eq!(skipped, Skipped { damaged: 9, ..Skipped::default() });
    let hit = [5, 6, 20, 21, 30, 40, 50, 60, 70, 99];
    let all = read(&sound).0;
    let (left, rest): (Vec<_>, Vec<_>) = samples.into_iter().partition(|sample| all.contains(sample));
    assert!(left.iter().eq(all.iter().enumerate().filter(|(i, _)| !hit.contains(i)).map(|(_, sample)| sample)));
    let halves =
        ["005 txt", "006 jpg", "020 txt", "021 jpg", "030 txt", "040 jpg", "060 txt", "070 jpg+txt", "099 jpg"];
    assert_eq!(summary(&rest), halves);

    // The same bytes come the same way, however few at a time.
    struct Slow<'a>(&'a [u8]);
    impl std::io::Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let some = out.len().min(7);
            self.0.read(&mut out[..some])
        }
    }
    let mut slowly = Vec::new();
    let same = read_samples(Slow(&shard), &mut |sample| {
        slowly.push(sample);
        ControlFlow::Continue(())
    });
    assert_eq!((slowly, same), read(&shard));

    // A shard that is cut off, too, says both.
    let (samples, skipped) = read(&shard[..block(80, 1) + 100]);
    assert_eq!((samples.len(), skipped), (79, Skipped { damaged: 8, cut: 1, ..Skipped::default() }));
    // What never was a shard has no members.
    assert_eq!(read(&[b'<'; 5000]), (Vec::new(), Skipped { cut: 1, ..Skipped::default() }));
    // Nothing is to be found behind the end, or it would be there.
    let mut trailing = sound.clone();
    trailing.extend([1; 5000]);
    assert_eq!(read(&trailing), (all, Skipped::default()));
}

/// Members of a tar file within a member whose header is damaged are taken for the shard's; its end is not.
#[test]
fn a_shard_in_a_damaged_member_does_not_end_the_shard() {
    let inner = tar(&[("x.txt", b"inner")]);
    let mut shard = tar(&[("0.txt", b"0"), ("1.tar", &inner), ("2.txt", b"2")]);
    assert_eq!(summary(&read(&shard).0), ["0 txt", "1 tar", "2 txt"]);
    shard[1024] ^= 1;
    let (samples, skipped) = read(&shard);
    assert_eq!(summary(&samples), ["0 txt", "x txt", "2 txt"]);
    assert_eq!(skipped, Skipped { damaged: 2, ..Skipped::default() });
}

/// What braceexpand 0.1.7 makes of them.
#[test]
fn braces_are_those_of_the_python_package() {
    for (pattern, names) in [
        ("x{a,b{1..2},}y", "xay xb1y xb2y xy"),
        ("{a,{b,{c,d}}}", "a b c d"),
        ("{-1..3}", "-1 0 1 2 3"),
        ("{0..-2}", "0 -1 -2"),
        ("{10..0..5}", "10 5 0"),
        ("{1..5..-2}", "1 3 5"),
        ("{1..3..0}", "1 2 3"),
        ("{-05..5..5}", "-05 000 005"),
        ("{00..0}", "00"),
        ("{a..e..2}", "a c e"),
        ("{Z..b}", "Z a b"),
        ("{b..Y}", "b a Z Y"),
        ("{a..a}", "a"),
        ("{a,b..c}", "a b..c"),
        ("{é,ü}", "é ü"),
        (r"a\{1,2\}\\{3,4}", r"a{1,2}\3 a{1,2}\4"),
        (r"{a\,b,c}", "a,b c"),
    ] {
        assert_eq!(expand(pattern).expect("names"), names.split(' ').collect::<Vec<_>>(), "{pattern}");
    }
}

#[test]
fn colons_of_an_address_join_nothing() {
    let names = |pattern: &str| expand(pattern).expect("names");
    assert_eq!(names("http://[::1]:80/a.tar"), ["http://[::1]:80/a.tar"]);
    assert_eq!(
        names("a.tar::http://u:p@[fe80::1]/{0,1}.tar::https://[1::2]/b.tar::c[.tar::d].tar"),
        [
            "a.tar",
            "http://u:p@[fe80::1]/0.tar",
            "http://u:p@[fe80::1]/1.tar",
            "https://[1::2]/b.tar",
            "c[.tar",
            "d].tar"
        ]
    );
}

/// A shard that the Python package made (`fixtures/shard.py`).
#[test]
fn shards_of_the_python_package_are_read() {
    let (samples, skipped) = read(include_bytes!("fixtures/shard.tar"));
    assert_eq!(skipped, Skipped::default());
    assert_eq!(summary(&samples), ["0", "1", "2"].map(|i| format!("pairs/00000{i} json+png+txt")));
    assert_eq!(samples[1].parts["txt"], "ein grünes Feld".as_bytes());
    assert_eq!(samples[2].parts["json"], br#"{"index": 2}"#);
    let widths = samples.iter().map(|s| Picture::decode(&s.parts["png"]).expect("a picture").width());
    assert_eq!(widths.collect::<Vec<_>>(), [4, 5, 6]);
}
