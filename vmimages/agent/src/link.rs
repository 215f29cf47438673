//! The byte stream to the host: the virtio port named `hgm`, or the second serial port.

use crate::sys;

/// How long the virtio port may take to appear, in steps of 20 ms.
const PORT_STEPS: u32 = 100;
const SERIAL: &str = "/dev/ttyS1";

/// An open link.
#[derive(Debug)]
pub struct Link {
    pub fd: i32,
    pub name: String,
}

/// Opens the link: the serial port if the kernel command line has `hgm.link=serial` or there is
/// no virtio port. Without either the machine is switched off: nobody could talk to it.
pub fn open() -> Link {
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let serial = cmdline.split_whitespace().any(|word| word == "hgm.link=serial");
    let link = if serial { None } else { virtio() };
    match link.or_else(open_serial) {
        Some(link) => {
            sys::say(&format!("link on {}", link.name));
            link
        }
        None => {
            sys::say("no link: neither a virtio port named hgm nor ttyS1");
            crate::init::power_off()
        }
    }
}

fn virtio() -> Option<Link> {
    for step in 0..PORT_STEPS {
        if let Some(link) = try_virtio() {
            return Some(link);
        }
        if step == 0 && !std::path::Path::new("/sys/class/virtio-ports").exists() {
            return None;
        }
        sys::sleep_ms(20);
    }
    None
}

fn try_virtio() -> Option<Link> {
    let port = std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find(|port| {
        std::fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == "hgm")
    })?;
    let name = format!("/dev/{}", port.file_name().to_string_lossy());
    let fd = sys::open(&name, libc::O_RDWR).ok()?;
    Some(Link { fd, name })
}

fn open_serial() -> Option<Link> {
    let fd = sys::open(SERIAL, libc::O_RDWR | libc::O_NOCTTY).ok()?;
    // SAFETY: the structure is filled before it is used.
    unsafe {
        let mut raw: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(fd, &mut raw) != 0 {
            return None;
        }
        libc::cfmakeraw(&mut raw);
        raw.c_cflag |= libc::CLOCAL | libc::CREAD;
        libc::tcsetattr(fd, libc::TCSANOW, &raw);
    }
    Some(Link { fd, name: SERIAL.into() })
}
