//! What a plugin offers: its verbs as a table, so that whoever runs plugins need not name them.

use crate::call::{Call, Verb};
use crate::failure::Failure;

/// A verb without an answer.
pub type Silent = fn(&Call) -> Result<(), Failure>;

/// A plugin's verbs. Those it does not have succeed.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// The plugin's name.
    pub name: &'static str,
    /// Versions it speaks, oldest first.
    pub versions: &'static [&'static str],
    /// The answer is the result, in the version of the call.
    pub add: fn(&Call) -> Result<String, Failure>,
    /// Detaches; nothing there is fine.
    pub del: Silent,
    /// Compares with the result of the ADD.
    pub check: Silent,
    /// An ADD could work.
    pub status: Silent,
    /// Removes what no listed attachment has.
    pub gc: Silent,
}

impl Offer {
    /// Does what a checked call asks for; the text is the answer, empty where there is none.
    ///
    /// # Errors
    ///
    /// Those of the plugin.
    pub fn run(&self, call: &Call) -> Result<String, Failure> {
        let silent = match call.verb {
            Verb::Add => return (self.add)(call),
            Verb::Del => self.del,
            Verb::Check => self.check,
            Verb::Status => self.status,
            Verb::Gc => self.gc,
            Verb::Version => nothing,
        };
        silent(call).map(|()| String::new())
    }
}

/// For a verb that a plugin does not have.
///
/// # Errors
///
/// None.
pub fn nothing(_: &Call) -> Result<(), Failure> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::call::Environment;

    fn refused(call: &Call) -> Result<(), Failure> {
        Err(Failure::internal(call.verb.as_str()))
    }

    #[test]
    fn verb_when_run_is_that_of_the_table_and_one_without_an_answer_says_nothing() {
        let offer = Offer {
            name: "x",
            versions: &["1.1.0"],
            add: |call| Ok(format!("added {}", call.name)),
            del: nothing,
            check: refused,
            status: refused,
            gc: refused,
        };
        let run = |verb: &str| {
            let env = Environment {
                command: verb.into(),
                ..Environment::default()
            };
            let call = Call::check(env, br#"{"name":"n","cniVersion":"1.1.0"}"#.to_vec()).unwrap();
            offer.run(&call).map_err(|failure| failure.msg)
        };
        assert_eq!(run("ADD"), Ok("added n".into()));
        assert_eq!(
            (run("DEL"), run("VERSION")),
            (Ok(String::new()), Ok(String::new()))
        );
        for verb in ["CHECK", "STATUS", "GC"] {
            assert_eq!(run(verb), Err(verb.into()));
        }
    }
}
