//! A program to be started, and its start.
//!
//! The start shares our memory with the child until it executes its own file (`CLONE_VM | CLONE_VFORK`), as `posix_spawn` does: a
//! fork would copy our page tables and make the engine fault on every page it writes next. `posix_spawn` itself cannot make a
//! program end with who started it.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::ptr;

use rustix::process::{Pid, WaitOptions, waitpid};

use super::{ExecError, PATH, find, folders};

/// Variables of ours that the system's programs are given, beside [`PATH`]; a `*` stands for any end.
const HANDED_ON: [&str; 3] = ["LD_LIBRARY_PATH", "XTABLES_*", "IPTABLES_*"];
/// `linux/close_range.h`.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
/// Standard input, output and error are below.
const FIRST_OF_OTHERS: RawFd = 3;
/// Room for the child's few calls until it executes its file; `posix_spawn` of glibc takes 32 KiB.
const STACK: usize = 64 << 10;

/// A program, what it is told and what it knows of us.
#[derive(Debug, Clone)]
pub struct Program {
    file: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    /// It gets no descriptor of ours but those named, and ends when the thread does that has started it.
    is_apart: bool,
    inherited: Vec<RawFd>,
}

impl Program {
    /// The one in a file, by path, with all of our environment.
    pub fn at(file: impl Into<PathBuf>) -> Program {
        let file = file.into();
        Program {
            arguments: vec![file.as_os_str().to_owned()],
            file,
            environment: std::env::vars_os().collect(),
            is_apart: false,
            inherited: Vec::new(),
        }
    }

    /// One of the system, such as a firewall's, that is to know nothing of us: of our environment it gets where programs and
    /// libraries are, and no secret; of our descriptors none. It speaks English, so that its complaints can be understood, and ends
    /// when the thread does that has started it.
    ///
    /// # Errors
    ///
    /// [`ExecError::NotFound`] when it is not installed.
    pub fn system(name: &str) -> Result<Program, ExecError> {
        let file = find(name).ok_or_else(|| ExecError::NotFound {
            program: name.to_owned(),
        })?;
        let is_handed_on = |name: &OsStr| {
            let name = name.to_str().unwrap_or_default();
            HANDED_ON.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == *pattern,
            })
        };
        let program = Program {
            arguments: vec![name.into()],
            file,
            environment: std::env::vars_os()
                .filter(|(name, _)| is_handed_on(name))
                .collect(),
            is_apart: true,
            inherited: Vec::new(),
        };
        let program = match std::env::join_paths(folders(std::env::var_os(PATH))) {
            Ok(path) => program.env(PATH, path),
            Err(_) => program,
        };
        Ok(program.env("LC_ALL", "C"))
    }

    /// The name it is called by, in place of its file's.
    #[must_use]
    pub fn called(mut self, name: impl Into<OsString>) -> Program {
        if let Some(first) = self.arguments.first_mut() {
            *first = name.into();
        }
        self
    }

    /// Further arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.arguments
            .extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// A variable of its environment, in place of one of that name.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Program {
        let name = name.into();
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.into()));
        self
    }

    /// Lets it inherit a descriptor, under the same number. In this process it stays closed on exec, so that no program started at
    /// the same time has it too. The caller holds it until the program has been started.
    #[must_use]
    pub fn inherit(mut self, descriptor: &OwnedFd) -> Program {
        self.inherited.push(descriptor.as_raw_fd());
        self
    }

    /// The last part of its file's path.
    pub fn name(&self) -> String {
        let name = self.file.file_name().unwrap_or(self.file.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Starts it in a process group of its own, so that what it starts can be ended with it.
    ///
    /// # Errors
    ///
    /// Why its file cannot be executed, an argument with a NUL byte, or no process to be had.
    pub(super) fn start(&self) -> io::Result<Child> {
        let (stdin, input) = io::pipe()?;
        let (output, stdout) = io::pipe()?;
        let (complaint, stderr) = io::pipe()?;
        // Were one of them a standard one here, the child would lose it with the first that is put in place.
        let apart = |end: OwnedFd| above(end, FIRST_OF_OTHERS);
        let ends = [apart(stdin.into())?, apart(stdout.into())?, apart(stderr.into())?];
        let pid = self.spawn(ends.each_ref().map(AsRawFd::as_raw_fd))?;
        Ok(Child {
            pid,
            stdin: Some(input),
            stdout: Some(output),
            stderr: Some(complaint),
        })
    }

    fn spawn(&self, ends: [RawFd; 3]) -> io::Result<Pid> {
        // Found out here, too: where a process is emulated (qemu-user) the child's word of it is lost.
        rustix::fs::access(&self.file, rustix::fs::Access::EXEC_OK)?;
        let file = c_string(self.file.as_os_str())?;
        let arguments: Vec<CString> = self
            .arguments
            .iter()
            .map(|a| c_string(a))
            .collect::<Result<_, _>>()?;
        let variable = |(name, value): &(OsString, OsString)| {
            let mut text = name.clone();
            text.push("=");
            text.push(value);
            c_string(&text)
        };
        let environment: Vec<CString> = self.environment.iter().map(variable).collect::<Result<_, _>>()?;
        let (arguments, environment) = (pointers(&arguments), pointers(&environment));
        let mut plan = Plan {
            file: file.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            ends,
            is_apart: self.is_apart,
            inherited: &self.inherited,
            parent: rustix::process::getpid(),
            error: 0,
        };
        // As many numbers as are aligned as a stack is asked to be.
        let mut stack: Vec<u128> = Vec::with_capacity(STACK / size_of::<u128>());
        let top = stack
            .spare_capacity_mut()
            .as_mut_ptr_range()
            .end
            .cast::<libc::c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: `all` and `mask` are plain sets of bits which these calls write before they are read, and `clone` gets a stack of
        // its own, whose end it is given, and a plan that outlives the child's use of our memory: `CLONE_VFORK` lets this thread go
        // on only when the child has executed its file or ended. INVARIANT: all signals are blocked from before the child is there
        // until it has none of our handlers: one that ran in the child would write to our memory in its name.
        let (pid, error) = unsafe {
            let (mut all, mut mask) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut mask);
            let pid = libc::clone(become_program, top, flags, ptr::from_mut(&mut plan).cast());
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, &mask, ptr::null_mut());
            (pid, error)
        };
        let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(error)?;
        // SAFETY: a valid place of this thread's. Read as volatile since it is the child that may have written it.
        match unsafe { ptr::read_volatile(&raw const plan.error) } {
            0 => Ok(pid),
            errno => {
                while matches!(
                    waitpid(Some(pid), WaitOptions::empty()),
                    Err(rustix::io::Errno::INTR)
                ) {}
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

/// A program that runs, or has ended and was not collected yet.
#[derive(Debug)]
pub(super) struct Child {
    /// Its process, and its group.
    pub(super) pid: Pid,
    pub(super) stdin: Option<PipeWriter>,
    pub(super) stdout: Option<PipeReader>,
    pub(super) stderr: Option<PipeReader>,
}

impl Child {
    /// Collects it when it has ended.
    pub(super) fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        match waitpid(Some(self.pid), WaitOptions::NOHANG) {
            Ok(ended) => Ok(ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()))),
            Err(rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// What the child is to do, in a form that needs no memory to be allocated.
struct Plan<'a> {
    file: *const libc::c_char,
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
    /// Its standard input, output and error, all above these numbers.
    ends: [RawFd; 3],
    is_apart: bool,
    inherited: &'a [RawFd],
    parent: Pid,
    /// Why it did not become the program; 0 when it did.
    error: libc::c_int,
}

/// The child's part, in our memory and on a stack of its own.
extern "C" fn become_program(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: what `spawn` hands to `clone`, and waits with until this has ended or executed.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    plan.error = execute(plan).raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: ends this process without running what our threads have registered for the end of theirs.
    unsafe { libc::_exit(127) }
}

/// INVARIANT: no allocation and no lock from here to `execve`: another thread of ours may be in the middle of either.
fn execute(plan: &Plan<'_>) -> io::Error {
    let checked = |result: libc::c_int| match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: plain system calls on descriptors and numbers; the pointers are the plan's, each list ended by a null.
    let prepare = || unsafe {
        forget_handlers();
        checked(libc::setpgid(0, 0))?;
        for (descriptor, number) in plan.ends.into_iter().zip(0..) {
            checked(libc::dup2(descriptor, number))?;
        }
        if plan.is_apart {
            // What an ancestor of ours left open over exec is closed there too. Kernels before 5.11 cannot; all of ours is so anyway.
            libc::syscall(
                libc::SYS_close_range,
                FIRST_OF_OTHERS,
                libc::c_uint::MAX,
                CLOSE_RANGE_CLOEXEC,
            );
            checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // Killed before that was said. A parent in another PID namespace is none that can be told (0), and not taken for gone.
            let parent = libc::getppid();
            if parent != plan.parent.as_raw_nonzero().get() && parent != 0 {
                return Err(io::Error::from_raw_os_error(libc::EINTR));
            }
        }
        for descriptor in plan.inherited {
            checked(libc::fcntl(*descriptor, libc::F_SETFD, 0))?;
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        checked(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()))?;
        libc::execve(plan.file, plan.arguments, plan.environment);
        Err::<(), _>(io::Error::last_os_error())
    };
    prepare()
        .err()
        .unwrap_or_else(|| io::Error::from_raw_os_error(libc::EIO))
}

/// Gives every signal that has a handler its default again, and `SIGPIPE`, which Rust ignores: what is ignored stays so over
/// `execve`.
///
/// # Safety
///
/// Only for a child that shares no signal table with its parent.
unsafe fn forget_handlers() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: an action is plain data for which all zeroes mean the default; a signal that has none is refused by the call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &mut action) != 0 {
                continue;
            }
            let is_kept = action.sa_sigaction == libc::SIG_DFL || action.sa_sigaction == libc::SIG_IGN;
            if !is_kept || signal == libc::SIGPIPE {
                action = std::mem::zeroed();
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    }
}

/// The same descriptor under a number that is not below `lowest`, closed on exec.
pub(super) fn above(descriptor: OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    match descriptor.as_raw_fd() >= lowest {
        true => Ok(descriptor),
        false => Ok(rustix::io::fcntl_dupfd_cloexec(&descriptor, lowest)?),
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = texts.iter().map(|text| text.as_ptr());
    pointers.chain([ptr::null()]).collect()
}
