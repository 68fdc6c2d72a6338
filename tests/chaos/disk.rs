//! A disk that is small enough to be filled.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How much it holds, as `mount` writes it: many times what a signer writes here.
const SIZE: &str = "32m";

/// A file system in memory, there as long as this is.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Mounts it at a folder that is made.
    pub(crate) fn mount(folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let options = format!("size={SIZE},mode=0700");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tss-chaos"]).arg(&folder).output();
        let mount = mount.expect("this test needs the program `mount`, to fill a disk of its own");
        assert!(
            mount.status.success(),
            "this test needs to mount a tmpfs, to fill a disk of its own: it has to run as root, with \
             CAP_SYS_ADMIN in a container. `mount` says: {}",
            String::from_utf8_lossy(&mount.stderr)
        );
        Self(folder)
    }

    /// Fills it to the last byte.
    pub(crate) fn fill(&self) {
        let mut ballast = std::fs::File::create(self.ballast()).unwrap();
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0; size];
            while let Ok(1..) = ballast.write(&piece) {}
        }
    }

    /// Makes room again.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        Path::new(&self.0).join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever may still hold a file there: the folder is free at once.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
