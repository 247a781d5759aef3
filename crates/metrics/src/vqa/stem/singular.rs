//! Singulars by the rules of the Python package `inflection` 0.5.

use std::sync::LazyLock;

use regex::Regex;

/// Where a word ends in one of these, after anything but a letter, it stays as it is.
const UNCOUNTABLE: &str =
    r"(?i)(?:^|[^\p{L}\p{N}_])(?:equipment|fish|information|jeans|money|rice|series|sheep|species)$";

/// The first rule that matches is the one that is applied.
const RULES: [(&str, &str); 42] = [
    // Irregular words.
    (r"(?i)(z)ombies$", "${1}ombie"),
    (r"k[iI][nN][eE]$", "cow"),
    (r"K[iI][nN][eE]$", "Cow"),
    (r"(?i)(m)oves$", "${1}ove"),
    (r"(?i)(s)exes$", "${1}ex"),
    (r"(?i)(c)hildren$", "${1}hild"),
    (r"(?i)(h)umans$", "${1}uman"),
    (r"(?i)(m)en$", "${1}an"),
    (r"(?i)(p)eople$", "${1}erson"),
    // Classes of words.
    (r"(?i)(database)s$", "$1"),
    (r"(?i)(quiz)zes$", "$1"),
    (r"(?i)(matr)ices$", "${1}ix"),
    (r"(?i)(vert|ind)ices$", "${1}ex"),
    (r"(?i)(passer)sby$", "${1}by"),
    (r"(?i)^(ox)en", "$1"),
    (r"(?i)(alias|status)(?:es)?$", "$1"),
    (r"(?i)(octop|vir)(?:us|i)$", "${1}us"),
    (r"(?i)^(a)x[ie]s$", "${1}xis"),
    (r"(?i)(cris|test)(?:is|es)$", "${1}is"),
    (r"(?i)(shoe)s$", "$1"),
    (r"(?i)(o)es$", "$1"),
    (r"(?i)(bus)(?:es)?$", "$1"),
    (r"(?i)(m|l)ice$", "${1}ouse"),
    (r"(?i)(x|ch|ss|sh)es$", "$1"),
    (r"(?i)(m)ovies$", "${1}ovie"),
    (r"(?i)(s)eries$", "${1}eries"),
    (r"(?i)([^aeiouy]|qu)ies$", "${1}y"),
    (r"(?i)([lr])ves$", "${1}f"),
    (r"(?i)(tive)s$", "$1"),
    (r"(?i)(hive)s$", "$1"),
    (r"(?i)([^f])ves$", "${1}fe"),
    (r"(?i)(t)he(?:sis|ses)$", "${1}hesis"),
    (r"(?i)(s)ynop(?:sis|ses)$", "${1}ynopsis"),
    (r"(?i)(p)rogno(?:sis|ses)$", "${1}rognosis"),
    (r"(?i)(p)arenthe(?:sis|ses)$", "${1}arenthesis"),
    (r"(?i)(d)iagno(?:sis|ses)$", "${1}iagnosis"),
    (r"(?i)(b)a(?:sis|ses)$", "${1}asis"),
    (r"(?i)(a)naly(?:sis|ses)$", "${1}nalysis"),
    (r"(?i)([ti])a$", "${1}um"),
    (r"(?i)(n)ews$", "${1}ews"),
    (r"(?i)(ss)$", "$1"),
    (r"(?i)s$", ""),
];

/// The singular of a plural noun; of other words whatever the rules make of them.
pub fn singularise(word: &str) -> String {
    static UNCHANGED: LazyLock<Regex> = LazyLock::new(|| Regex::new(UNCOUNTABLE).expect("a valid pattern"));
    static COMPILED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        RULES.iter().map(|&(rule, singular)| (Regex::new(rule).expect("a valid pattern"), singular)).collect()
    });
    if UNCHANGED.is_match(word) {
        return word.to_owned();
    }
    let rule = COMPILED.iter().find(|(rule, _)| rule.is_match(word));
    rule.map_or_else(|| word.to_owned(), |(rule, singular)| rule.replace(word, *singular).into_owned())
}
