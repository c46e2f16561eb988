//! The log: one line per event on standard error, colour only on a terminal.
//!
//! Field values come from registries, kernels and files that others write: they are shown [escaped](Escaped), so that no value
//! begins a line of its own or paints the terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use fabric::printable::Escaped;
use fabric::utc::Seconds;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// What `-v` lets through: 0 and below information and worse, 1 to 5 decisions, from 6 on single messages too.
pub fn level(verbosity: i32) -> LevelFilter {
    match verbosity {
        ..=0 => LevelFilter::INFO,
        1..=5 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Sends all events of this process to standard error from now on; false when that had been done before.
pub fn start(verbosity: i32) -> bool {
    let colour = io::stderr().is_terminal();
    let subscriber = subscriber(level(verbosity), colour, io::stderr);
    tracing::subscriber::set_global_default(subscriber).is_ok()
}

fn subscriber<W>(level: LevelFilter, colour: bool, writer: W) -> impl Subscriber
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_max_level(level)
        // Its own complaint about a closed stderr would go to that same stderr, by a macro that panics.
        .log_internal_errors(false)
        .event_format(OneLine { colour })
        .with_writer(writer)
        .finish()
}

struct OneLine {
    colour: bool,
}

impl<S, N> FormatEvent<S, N> for OneLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let (name, colour) = match *metadata.level() {
            Level::ERROR => ("ERROR", "31"),
            Level::WARN => ("WARN ", "33"),
            Level::INFO => ("INFO ", "32"),
            Level::DEBUG => ("DEBUG", "34"),
            Level::TRACE => ("TRACE", "35"),
        };
        write_time(&mut writer, SystemTime::now())?;
        if self.colour {
            write!(writer, " \x1b[{colour}m{name}\x1b[0m ")?;
        } else {
            write!(writer, " {name} ")?;
        }
        // The module is of use to who reads the source, not to who runs the daemon.
        if *metadata.level() >= Level::DEBUG {
            write!(writer, "{}: ", metadata.target())?;
        }
        let mut fields = Fields {
            message: String::new(),
            rest: String::new(),
        };
        event.record(&mut fields);
        writeln!(writer, "{}{}", fields.message, fields.rest)
    }
}

/// The event's message, and its other fields as ` name=value`.
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write;
        // Writing to a String fails only when the value's own formatting does; what came before it is kept.
        let _ = if field.name() == "message" {
            write!(Escaping(&mut self.message), "{value:?}")
        } else {
            write!(Escaping(&mut self.rest), " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// What is written to it is escaped.
struct Escaping<'a>(&'a mut String);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write!(self.0, "{}", Escaped(text))
    }
}

/// A time as the log writes it, to the second.
pub fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}Z", Seconds(since.as_secs()))
}

/// RFC 3339 in UTC, with milliseconds.
fn write_time(writer: &mut impl fmt::Write, time: SystemTime) -> fmt::Result {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    write!(
        writer,
        "{}.{:03}Z",
        Seconds(since.as_secs()),
        since.subsec_millis()
    )
}

/// Writes to standard error, line by line, what has to be said before, or instead of, logging; a closed one is nobody's fault
/// here.
pub fn say(text: &str) {
    let shown: String = text
        .split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => format!("{}\n", Escaped(line)),
            None => Escaped(line).to_string(),
        })
        .collect();
    let _ = io::stderr().lock().write_all(shown.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(verbosity: i32, colour: bool, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(level(verbosity), colour, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn event_when_its_values_hold_newlines_stays_one_line() {
        let text = logged(0, false, || {
            tracing::warn!(peer = "10.0.0.1\nINFO all is well", "bad \x1b[31mlease\r\n");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let (time, rest) = text.split_at(24);
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        assert_eq!(
            rest,
            " WARN  bad \\u{1b}[31mlease\\r\\n peer=10.0.0.1\\nINFO all is well\n"
        );
    }

    #[test]
    fn level_when_verbosity_grows_lets_more_through() {
        let all = || {
            tracing::error!("e");
            tracing::info!("i");
            tracing::debug!("d");
            tracing::trace!("t");
        };
        for (verbosity, lines) in [(-1, 2), (0, 2), (1, 3), (5, 3), (6, 4), (10, 4)] {
            assert_eq!(
                logged(verbosity, false, all).lines().count(),
                lines,
                "-v={verbosity}"
            );
        }
    }

    #[test]
    fn event_when_not_on_a_terminal_has_no_colour() {
        assert!(!logged(0, false, || tracing::error!("x")).contains('\x1b'));
        assert!(logged(0, true, || tracing::error!("x")).contains("\x1b[31mERROR\x1b[0m x"));
    }

    #[test]
    fn time_when_written_is_the_day_it_is() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let mut written = String::new();
            write_time(&mut written, UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
            assert_eq!(written, text);
        }
    }

    #[test]
    fn time_when_told_to_the_second_then_hours_minutes_and_seconds() {
        let at = |seconds: u64, millis: u64| {
            UNIX_EPOCH + std::time::Duration::from_secs(seconds) + std::time::Duration::from_millis(millis)
        };
        assert_eq!(utc(at(0, 999)), "1970-01-01T00:00:00Z");
        assert_eq!(utc(at(86_400 - 1, 0)), "1970-01-01T23:59:59Z");
        assert_eq!(utc(at(86_400 + 3600 * 2 + 60 * 3 + 4, 0)), "1970-01-02T02:03:04Z");
        let mut text = String::new();
        write_time(&mut text, at(1, 7)).unwrap();
        assert_eq!(text, "1970-01-01T00:00:01.007Z");
    }
}
