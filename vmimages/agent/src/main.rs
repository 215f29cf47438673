//! The guest agent: PID 1 of the initramfs. It brings the machine up, then runs the programs the
//! host sends in worker processes and reports what they saw. It judges nothing.

mod board;
mod canary;
mod content;
mod exec;
mod executable;
mod guard;
mod handler;
mod init;
mod kcov;
mod link;
mod look;
mod ops_file;
mod ops_map;
mod ops_proc;
mod ops_special;
mod ops_uffd;
mod probe;
mod provoke;
mod sabotage;
mod scratch;
mod special;
mod stranded;
mod stuck;
mod supervisor;
mod symbols;
mod sys;
mod timeout;
mod uapi;
mod views;
mod worker;

fn main() {
    if std::process::id() != 1 {
        eprintln!("error: the agent runs only as the first process of a guest");
        eprintln!("help: boot it with hgm; on a host there is nothing for it to do");
        std::process::exit(2);
    }
    init::mount_all();
    init::load_modules();
    init::quiet();
    let link = link::open();
    let settings = init::Settings::take();
    let profile = probe::profile();
    let lost = supervisor::serve(&link, &profile, &settings);
    sys::say(&format!("the link is gone: errno {lost}"));
    init::power_off();
}
