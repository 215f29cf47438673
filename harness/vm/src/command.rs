//! QEMU's command line and the kernel's. Pure text; tests can read it.

use crate::cover::plugin_arg;
use crate::{Accel, VmSpec};
use std::ffi::OsString;
use std::os::fd::RawFd;

/// NUMA nodes of every VM.
pub const NODES: usize = 2;

/// Where a guest's memory comes from. Descriptors are of one memory file a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ram {
    /// QEMU's own; the guest boots.
    Anonymous,
    /// Files that see every write of the guest, which boots and becomes a snapshot.
    Shared([RawFd; NODES]),
    /// Files that are read only, under private pages; the guest waits for the state of a snapshot.
    Private([RawFd; NODES]),
}

/// Descriptors QEMU inherits: connected stream sockets. No path names, so nothing to plant, to
/// outgrow sun_path, or to be left behind.
#[derive(Clone, Copy, Debug)]
pub struct Fds {
    pub console: RawFd,
    pub link: RawFd,
    pub qmp: RawFd,
    /// Shared memory of the coverage plugin, where `VmSpec::cover` asks for it.
    pub cover: Option<RawFd>,
}

/// Why each is there:
/// * `nokaslr`: addresses in coverage and reports compare across boots.
/// * `earlyprintk`: a panic before the real console exists still shows.
/// * `loglevel=5`: warnings and worse; the agent raises it once it runs.
/// * `panic=-1 oops=panic` with `-no-reboot`: the report is printed in full, then QEMU exits.
/// * `mitigations=off init_on_alloc=0`: speed; and stale page contents must not be hidden.
/// * `numa_balancing=disable`: pages move only when a program moves them.
/// * `ramdisk_size`, in KiB: a kernel with a RAM disk built in has one for the longest transfer.
const KERNEL_ARGS: &str = "console=ttyS0,115200 earlyprintk=ttyS0,115200 nokaslr loglevel=5 \
    panic=-1 oops=panic unknown_nmi_panic hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=64 \
    default_hugepagesz=2M transparent_hugepage=always mitigations=off init_on_alloc=0 \
    numa_balancing=disable random.trust_cpu=on no_timer_check ramdisk_size=32768";

/// Under TCG the TSC is as good as the host's clock, but the kernel does not trust it and reads
/// the emulated HPET for every look at the time.
const TCG_ARGS: &str = " tsc=reliable";

/// What the agent looks for to choose the second serial port.
const SERIAL_LINK_ARG: &str = "hgm.link=serial";

/// The kernel command line of `spec`.
pub fn kernel_args(spec: &VmSpec) -> String {
    let mut args = KERNEL_ARGS.to_string();
    if spec.accel == Accel::Tcg {
        args.push_str(TCG_ARGS);
    }
    if spec.serial_link {
        args.push(' ');
        args.push_str(SERIAL_LINK_ARG);
    }
    if !spec.extra_cmdline.is_empty() {
        args.push(' ');
        args.push_str(&spec.extra_cmdline);
    }
    args
}

/// Memory of each node, in MiB.
pub fn node_mib(memory_mib: u32) -> [u32; NODES] {
    let near = memory_mib / 2;
    [near, memory_mib - near]
}

/// QEMU's arguments for `spec`.
pub fn qemu_args(spec: &VmSpec, fds: Fds, ram: Ram) -> Vec<OsString> {
    let mut args = name_args(spec);
    args.extend(machine_args(spec, fds, ram));
    if let (Some(cover), Some(fd)) = (&spec.cover, fds.cover) {
        args.push("-plugin".into());
        args.push(plugin_arg(cover, fd));
    }
    if let Ram::Private(_) = ram {
        // Kernel and initramfs are in the memory already.
        args.extend(["-incoming".into(), "defer".into()]);
        return args;
    }
    args.push("-kernel".into());
    args.push(spec.kernel.clone().into());
    args.push("-initrd".into());
    args.push(spec.initrd.clone().into());
    args.push("-append".into());
    args.push(kernel_args(spec).into());
    args
}

/// Tells people which process belongs to which run.
fn name_args(spec: &VmSpec) -> Vec<OsString> {
    // A comma would end the option's value.
    let dir = spec.dir.to_string_lossy().replace(',', ",,");
    vec!["-name".into(), format!("guest=hgm {dir}").into()]
}

/// The machine as the guest sees it, and our streams.
pub fn machine_args(spec: &VmSpec, fds: Fds, ram: Ram) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |text: &str| args.extend(text.split(' ').map(OsString::from));
    add("-machine q35 -nodefaults -no-user-config -display none -no-reboot -nic none");
    add("-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    match spec.accel {
        // `max` makes the guest clear pages with a slow `rep stosb`; pdpe1gb is for 1 GiB pages.
        Accel::Tcg => add("-accel tcg,thread=multi -cpu qemu64,+pdpe1gb"),
        Accel::Kvm => add("-accel kvm -cpu host"),
    }
    // A socket per CPU: CPUs of two nodes that share a cache make the kernel print a warning.
    add(&format!("-smp {0},sockets={0},cores=1,threads=1 -m {1}M", spec.cpus, spec.memory_mib));
    let near_cpus = spec.cpus.div_ceil(2);
    let cpus = [0..near_cpus, near_cpus..spec.cpus];
    for (node, (mib, cpus)) in node_mib(spec.memory_mib).into_iter().zip(cpus).enumerate() {
        let file = |fds: [RawFd; NODES], share: &str| {
            format!("file,id=ram{node},mem-path=/proc/self/fd/{},share={share}", fds[node])
        };
        let backend = match ram {
            Ram::Anonymous => format!("ram,id=ram{node}"),
            Ram::Shared(fds) => file(fds, "on"),
            Ram::Private(fds) => file(fds, "off"),
        };
        add(&format!("-object memory-backend-{backend},size={mib}M"));
        let cpus: String = cpus.map(|cpu| format!(",cpus={cpu}")).collect();
        add(&format!("-numa node,nodeid={node},memdev=ram{node}{cpus}"));
    }
    add(&format!("-chardev socket,id=console,fd={} -serial chardev:console", fds.console));
    add(&format!("-chardev socket,id=link,fd={}", fds.link));
    if spec.serial_link {
        add("-serial chardev:link");
    } else {
        add("-device virtio-serial-pci,max_ports=2");
        add("-device virtserialport,chardev=link,name=hgm");
    }
    add(&format!("-chardev socket,id=qmp,fd={} -mon chardev=qmp,mode=control", fds.qmp));
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CoverSpec;
    use std::time::Duration;

    fn spec() -> VmSpec {
        VmSpec {
            qemu: "qemu".into(),
            kernel: "/k n".into(),
            initrd: "/i".into(),
            memory_mib: 4096,
            cpus: 2,
            accel: Accel::Tcg,
            jail: crate::Jail::Open,
            dir: "/d".into(),
            boot_timeout: Duration::from_secs(1),
            extra_cmdline: String::new(),
            serial_link: false,
            cover: None,
        }
    }

    fn text(spec: &VmSpec) -> String {
        text_with(spec, Ram::Anonymous)
    }

    fn text_with(spec: &VmSpec, ram: Ram) -> String {
        let fds = Fds { console: 3, link: 4, qmp: 5, cover: Some(8) };
        let args = qemu_args(spec, fds, ram);
        args.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn the_ram_disk_holds_the_longest_transfer() {
        let disk = format!(" ramdisk_size={}", case::limits::ACCESS_BYTES_MAX >> 10);
        assert!(kernel_args(&spec()).contains(&disk), "{disk}");
    }

    #[test]
    fn every_cpu_is_in_one_node_and_the_memory_adds_up() {
        for (cpus, near, far) in [(1, "cpus=0", ""), (2, "cpus=0", ",cpus=1"), (3, "1", ",cpus=2")]
        {
            let all = text(&VmSpec { cpus, memory_mib: 4097, ..spec() });
            assert!(all.contains(&format!("memdev=ram1{far}|")), "{all}");
            assert!(all.contains(&format!("{near}|-object|memory-backend-ram,id=ram1,size=2049M")));
        }
    }

    #[test]
    fn the_wall_is_always_there() {
        for accel in [Accel::Tcg, Accel::Kvm] {
            for ram in [Ram::Anonymous, Ram::Shared([6, 7]), Ram::Private([6, 7])] {
                let all = text_with(&VmSpec { accel, ..spec() }, ram);
                for part in
                    ["-sandbox|on,", "spawn=deny", "-nodefaults", "-no-user-config", "-nic|none"]
                {
                    assert!(all.contains(part), "{part}");
                }
                assert!(!all.contains(",path="), "no socket has a name");
            }
        }
    }

    #[test]
    fn the_link_is_one_port_and_the_guest_is_told_which() {
        let virtio = text(&spec());
        assert!(virtio.contains("virtserialport,chardev=link,name=hgm"));
        assert!(!virtio.contains("hgm.link=serial"));
        let extra = "mem=1G x=y".to_string();
        let serial = text(&VmSpec { serial_link: true, extra_cmdline: extra, ..spec() });
        assert!(serial.contains("-serial|chardev:link"));
        assert!(!serial.contains("virtio"));
        assert!(serial.ends_with(" hgm.link=serial mem=1G x=y"), "{serial}");
    }

    #[test]
    fn the_plugin_is_there_only_where_it_is_asked_for() {
        assert!(!text(&spec()).contains("-plugin"));
        let cover = CoverSpec { plugin: "/p.so".into(), ranges: Default::default() };
        assert!(
            text(&VmSpec { cover: Some(cover), ..spec() }).contains("-plugin|file=/p.so,fd=8|")
        );
    }

    #[test]
    fn paths_are_one_argument_each() {
        assert!(text(&spec()).contains("-kernel|/k n|-initrd|/i|"));
        let named = text(&VmSpec { dir: "/runs/a,b c".into(), ..spec() });
        assert!(named.starts_with("-name|guest=hgm /runs/a,,b c|"), "{named}");
    }

    #[test]
    fn a_clone_is_the_golden_machine_with_private_memory_and_boots_nothing() {
        let golden = text_with(&spec(), Ram::Shared([6, 7]));
        let clone = text_with(&spec(), Ram::Private([6, 7]));
        let (machine, _) = golden.split_once("|-kernel|").unwrap();
        assert_eq!(clone, format!("{}|-incoming|defer", machine.replace("share=on", "share=off")));
        assert!(golden.contains("memory-backend-file,id=ram1,mem-path=/proc/self/fd/7,share=on,"));
    }
}
