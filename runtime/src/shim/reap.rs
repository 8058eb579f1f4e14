//! The ends of processes.

use jiff::Timestamp;
use linux::process;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::note;
use super::server::{Purpose, Server};
use crate::limits;
use crate::types::{ContainerState, Exit};

/// Exit code of a container whose program could not be executed, as with other runtimes.
const START_ERROR_CODE: i32 = 128;

impl Server {
    /// Collects every process that has ended.
    pub(super) fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return,
                Ok(status) => self.ended(status),
                Err(nix::Error::EINTR) => {}
                // No children.
                Err(_) => return,
            }
        }
    }

    fn ended(&mut self, status: WaitStatus) {
        let (pid, code, signal) = match status {
            WaitStatus::Exited(pid, code) => (pid.as_raw(), code, None),
            WaitStatus::Signaled(pid, signal, _) => {
                (pid.as_raw(), 128 + signal as i32, Some(signal as i32))
            }
            _ => return,
        };
        if let Some(client) = self.programs.remove(&pid) {
            return self.tell_exit(client, code);
        }
        let ended = self.containers.iter().find(|(_, c)| c.pid == Some(pid));
        // Others are orphans of programs that were run by exec.
        if let Some(id) = ended.map(|(id, _)| id.clone()) {
            self.container_ended(&id, code, signal);
        }
    }

    fn container_ended(&mut self, id: &str, code: i32, signal: Option<i32>) {
        let shared_pid = self.sandbox.spec.share_pid || self.sandbox.spec.host_pid;
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.pid = None;
        container.kill_at = None;
        // Without a process namespace of its own the kernel has not ended its other processes.
        if shared_pid && let Err(e) = self.groups.kill_all(&container.file.cgroup) {
            note(&e.to_string());
        }
        let ooms = limits::oom_kills(&self.groups, &container.file.cgroup);
        let started_at = match container.state {
            ContainerState::Running { started_at, .. } => Some(started_at),
            ContainerState::Created | ContainerState::Exited(_) => None,
        };
        let start_error = container.start_error.take();
        let oom_killed = ooms > 0 && code != 0;
        let (code, reason, message) = match start_error {
            Some(why) => (START_ERROR_CODE, "StartError", why),
            None if oom_killed => (code, "OOMKilled", String::new()),
            None if code == 0 => (code, "Completed", String::new()),
            None => (code, "Error", String::new()),
        };
        container.state = ContainerState::Exited(Exit {
            code,
            signal,
            oom_killed,
            started_at,
            finished_at: Some(Timestamp::now()),
            reason: reason.to_owned(),
            message,
        });
        // The log is whole before anybody hears of the end.
        self.drain_output(id);
        self.publish(id);
        self.tell_end(id, code);
    }

    /// Answers everybody who waits for the end of a container.
    fn tell_end(&mut self, id: &str, code: i32) {
        if let Some(container) = self.containers.get_mut(id) {
            container.attached.clear();
        }
        let mut stops = Vec::new();
        let mut sessions = Vec::new();
        for (key, client) in &self.clients {
            match &client.purpose {
                Purpose::Stop { id: theirs } if theirs == id => stops.push(*key),
                Purpose::Attach { id: theirs } if theirs == id => sessions.push(*key),
                Purpose::None
                | Purpose::Stop { .. }
                | Purpose::Attach { .. }
                | Purpose::Exec { .. } => {}
            }
        }
        for key in stops {
            self.reply(key, Ok(()));
            self.set_purpose(key, Purpose::None);
        }
        for key in sessions {
            self.tell_exit(key, code);
        }
    }

    /// Kills a container and waits for its end. Ended is fine.
    pub(super) fn kill_now(&mut self, id: &str) {
        let Some(pid) = self.containers.get(id).and_then(|c| c.pid) else {
            return;
        };
        if let Err(e) = process::signal(pid, Signal::SIGKILL) {
            note(&e.to_string());
        }
        // Whatever ends meanwhile is collected, too: the first process of a process namespace does not
        // end before the programs run by exec in it are, and those are our children.
        while self.containers.get(id).is_some_and(|c| c.pid == Some(pid)) {
            match waitpid(None, None) {
                Ok(status) => self.ended(status),
                Err(nix::Error::EINTR) => {}
                Err(e) => return note(&format!("wait for container {id}: {e}")),
            }
        }
    }
}
