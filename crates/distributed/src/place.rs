//! Where a process stands among those that train together, as launchers say it.

use crate::GroupError;

/// The port of the first process where none is said: that of torchrun.
const PORT: u16 = 29500;

/// A process among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of the processes this is, from 0.
    pub node: usize,
    /// How many there are.
    pub nodes: usize,
    /// Where process 0 waits for the others: `host:port`.
    pub rendezvous: String,
    /// Which of this machine's processes this is, if the launcher says.
    pub local: Option<usize>,
}

/// What a user says, which goes before what a launcher says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Which of the processes this is.
    pub node: Option<usize>,
    /// How many there are.
    pub nodes: Option<usize>,
    /// Where process 0 waits.
    pub rendezvous: Option<String>,
}

impl Place {
    /// The place that was said, or that the variables of torchrun (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`,
    /// `MASTER_PORT`), of SLURM's `srun` (`SLURM_PROCID`, `SLURM_STEP_NUM_TASKS`, `SLURM_LOCALID`,
    /// `SLURM_STEP_NODELIST`) or of a Kubernetes indexed job (`JOB_COMPLETION_INDEX`, with `WORLD_SIZE` and
    /// `MASTER_ADDR` set in its manifest) give. `None` for a process that trains alone.
    ///
    /// # Errors
    /// [`GroupError::Place`] where a part is missing or no number.
    pub fn find(said: &Said, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, GroupError> {
        let number = |name: &str| -> Result<Option<usize>, GroupError> {
            let Some(value) = variable(name) else { return Ok(None) };
            let wrong = |_| GroupError::Place(format!("the variable {name} is `{value}`, which is no number"));
            value.trim().parse().map(Some).map_err(wrong)
        };
        let first = |names: &[&str]| -> Result<Option<usize>, GroupError> {
            names.iter().find_map(|name| number(name).transpose()).transpose()
        };
        let slurm = variable("SLURM_STEP_NUM_TASKS").is_some();
        let (ranks, counts, locals): (&[&str], &[&str], &[&str]) = if variable("RANK").is_some() || !slurm {
            (&["RANK", "JOB_COMPLETION_INDEX"], &["WORLD_SIZE"], &["LOCAL_RANK"])
        } else {
            (&["SLURM_PROCID"], &["SLURM_STEP_NUM_TASKS"], &["SLURM_LOCALID"])
        };
        let nodes = said.nodes.map_or_else(|| first(counts), |nodes| Ok(Some(nodes)))?;
        let Some(nodes) = nodes.filter(|&nodes| nodes > 1) else {
            // One of several that does not know it would write into the folder of another.
            let one_of_several = said.node.is_some() || said.rendezvous.is_some() || number("RANK")?.unwrap_or(0) > 0;
            return match nodes.or(said.nodes) {
                None if one_of_several => {
                    Err(GroupError::Place("how many processes train together? add --nodes, or set WORLD_SIZE".into()))
                }
                _ => Ok(None),
            };
        };
        let node = said.node.map_or_else(|| first(ranks), |node| Ok(Some(node)))?;
        let node = node.ok_or_else(|| {
            GroupError::Place(format!("which of the {nodes} processes is this? add --node-rank, or set RANK"))
        })?;
        if node >= nodes {
            return Err(GroupError::Place(format!("process {node} of {nodes}: the first is 0")));
        }
        let host = || match variable("MASTER_ADDR") {
            None if slurm => variable("SLURM_STEP_NODELIST").as_deref().and_then(first_host),
            address => address,
        };
        // torchrun keeps a store of its own on the port that it names.
        let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|used| used.eq_ignore_ascii_case("true"));
        let port = number("MASTER_PORT")?.unwrap_or(PORT.into()) + usize::from(taken);
        let rendezvous = said.rendezvous.clone().or_else(|| host().map(|host| format!("{host}:{port}")));
        let rendezvous = rendezvous.ok_or_else(|| {
            GroupError::Place("where is process 0? add --rendezvous HOST:PORT, or set MASTER_ADDR".to_string())
        })?;
        if rendezvous.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(GroupError::Place(format!("`{rendezvous}` is not of the form HOST:PORT")));
        }
        Ok(Some(Self { node, nodes, rendezvous, local: first(locals)? }))
    }
}

/// The first host of a SLURM list: `gpu[003-006,9],cpu1` begins with `gpu003`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let mut host = list[..end].to_string();
    if let Some(numbers) = list[end..].strip_prefix('[') {
        host += &numbers[..numbers.find([',', '-', ']'])?];
    }
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(said: &Said, variables: &[(&str, &str)]) -> Result<Option<Place>, GroupError> {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        Place::find(said, get)
    }

    fn place(node: usize, nodes: usize, rendezvous: &str, local: Option<usize>) -> Option<Place> {
        Some(Place { node, nodes, rendezvous: rendezvous.to_string(), local })
    }

    #[test]
    fn launchers_are_understood() {
        let torchrun =
            [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "77")];
        assert_eq!(find(&Said::default(), &torchrun), Ok(place(5, 8, "a:77", Some(1))));
        let agent = [&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(find(&Said::default(), &agent), Ok(place(5, 8, "a:78", Some(1))));
        let slurm = [
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "16"),
            ("SLURM_LOCALID", "3"),
            ("SLURM_STEP_NODELIST", "gpu[003-006,9],cpu1"),
        ];
        assert_eq!(find(&Said::default(), &slurm), Ok(place(3, 16, "gpu003:29500", Some(3))));
        let kubernetes = [("JOB_COMPLETION_INDEX", "0"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "train-0.train")];
        assert_eq!(find(&Said::default(), &kubernetes), Ok(place(0, 4, "train-0.train:29500", None)));
        let said = Said { node: Some(1), nodes: Some(2), rendezvous: Some("b:1".into()) };
        assert_eq!(find(&said, &torchrun), Ok(place(1, 2, "b:1", Some(1))));
        assert_eq!(find(&Said::default(), &[]), Ok(None));
        assert_eq!(find(&Said::default(), &[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None));
        // A script of sbatch, before srun: alone.
        assert_eq!(find(&Said::default(), &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), Ok(None));
        assert_eq!(first_host("n1,n2").as_deref(), Some("n1"));
        assert_eq!(first_host("n[7]").as_deref(), Some("n7"));
    }

    #[test]
    fn what_is_missing_is_said() {
        for (variables, said) in [
            (vec![("WORLD_SIZE", "4")], "--node-rank"),
            (vec![("WORLD_SIZE", "4"), ("RANK", "1")], "--rendezvous"),
            (vec![("WORLD_SIZE", "four")], "no number"),
            (vec![("RANK", "3")], "WORLD_SIZE"),
            (vec![("WORLD_SIZE", "4"), ("RANK", "4"), ("MASTER_ADDR", "a")], "the first is 0"),
        ] {
            let error = find(&Said::default(), &variables).expect_err("an error").to_string();
            assert!(error.contains(said), "{variables:?}: {error}");
        }
        let said = Said { node: Some(1), nodes: Some(2), rendezvous: Some("b".into()) };
        assert!(find(&said, &[]).expect_err("an error").to_string().contains("HOST:PORT"));
        let said = Said { node: Some(1), ..Said::default() };
        assert!(find(&said, &[]).expect_err("an error").to_string().contains("--nodes"));
    }
}
