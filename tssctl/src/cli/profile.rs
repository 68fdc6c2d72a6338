//! The file with profiles: where managers are, and how to be believed there, under names. It holds no secrets, only the
//! names of files that do.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::exit::Failure;
use super::output::{self, Printer};

/// The largest file of profiles, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The longest name.
const MAX_NAME: usize = 64;

/// Where profiles are kept.
#[derive(Args)]
pub(crate) struct ProfilesFile {
    /// The file with profiles; ~/.config/tss-network/tssctl.toml unless said otherwise.
    #[arg(long, env = "TSSCTL_CONFIG", value_name = "FILE")]
    config_file: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum ProfileCommand {
    /// List the profiles; the one in use is marked.
    List {
        #[command(flatten)]
        file: ProfilesFile,
    },
    /// Show a profile: the one in use if none is named.
    Show {
        /// Its name.
        name: Option<String>,
        #[command(flatten)]
        file: ProfilesFile,
    },
    /// Make a profile or change one: what is not said stays, and an empty value is removed. Comments in the file are lost.
    Set(Box<SetArguments>),
    /// Use a profile from now on.
    Use {
        /// Its name.
        name: String,
        #[command(flatten)]
        file: ProfilesFile,
    },
    /// Remove a profile.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        file: ProfilesFile,
    },
}

#[derive(Args)]
pub(crate) struct SetArguments {
    /// Its name.
    name: String,
    /// Where the manager is.
    #[arg(long, value_name = "URL")]
    manager: Option<String>,
    /// A file with the certificates of the authorities that may vouch for it.
    #[arg(long, value_name = "FILE", value_parser = any_file())]
    manager_ca: Option<PathBuf>,
    /// A file with the token that says who asks. The token itself is never kept in a profile.
    #[arg(long, value_name = "FILE", value_parser = any_file())]
    token_file: Option<PathBuf>,
    /// A file with the certificate that shows who asks.
    #[arg(long, value_name = "FILE", value_parser = any_file())]
    client_cert: Option<PathBuf>,
    /// A file with its key.
    #[arg(long, value_name = "FILE", value_parser = any_file())]
    client_key: Option<PathBuf>,
    /// Which key signs.
    #[arg(long)]
    key: Option<String>,
    /// Which derived key signs, as in 0/1/2.
    #[arg(long)]
    path: Option<String>,
    #[command(flatten)]
    file: ProfilesFile,
}

/// The name of a file, or none.
fn any_file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// What is kept under a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manager: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manager_ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
}

/// All of them, and which one is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profiles {
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    profiles: BTreeMap<String, Profile>,
    /// Where they are kept: names of files in a profile begin there.
    #[serde(skip)]
    folder: PathBuf,
}

impl ProfilesFile {
    fn path(&self) -> Option<PathBuf> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = || variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
        self.config_file.clone().or_else(|| Some(config()?.join("tss-network/tssctl.toml")))
    }

    /// The profiles; none if there is no file where one is by default.
    pub(crate) fn load(&self) -> anyhow::Result<Profiles> {
        let Some(file) = self.path() else { return Ok(Profiles::default()) };
        let text = match read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.config_file.is_none() => {
                String::new()
            }
            Err(error) => return Err(Failure::usage(format!("profiles {}: {error}", file.display()))),
        };
        Profiles::parse(&text, &file)
            .map_err(|problem| Failure::usage(format!("profiles {}: {problem}", file.display())))
    }

    /// Changes the file, or makes it.
    fn change<T>(&self, change: impl FnOnce(&mut Profiles) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let file = self
            .path()
            .ok_or_else(|| Failure::usage("no home folder: expected --config-file to name a file"))?;
        let mut profiles = if file.exists() { self.load()? } else { Profiles::default() };
        let made = change(&mut profiles)?;
        write(&file, &toml::to_string(&profiles)?).with_context(|| format!("profiles {}", file.display()))?;
        Ok(made)
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_FILE.saturating_add(1)).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("it has more than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// Replaces the file at once, so that half of one is never read.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

impl Profiles {
    fn parse(text: &str, file: &Path) -> Result<Self, String> {
        // The message alone: what stands in the file may be a token that does not belong there.
        let mut profiles: Self = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        profiles.folder = file.parent().map(Path::to_owned).unwrap_or_default();
        for name in profiles.profiles.keys() {
            check_name(name)?;
        }
        match &profiles.current {
            Some(name) if !profiles.profiles.contains_key(name) => {
                Err(format!("`current`: {}", profiles.none(name)))
            }
            _ => Ok(profiles),
        }
    }

    fn none(&self, name: &str) -> String {
        let names = self.profiles.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        match names.as_str() {
            "" => format!("no profile `{name}`: there is none (`tssctl profile set` makes one)"),
            names => format!("no profile `{name}`: expected one of {names}"),
        }
    }

    fn get(&self, name: &str) -> anyhow::Result<&Profile> {
        self.profiles.get(name).ok_or_else(|| Failure::usage(self.none(name)))
    }

    /// The named one, or the one in use, or an empty one; its files as they are named from here.
    pub(crate) fn choose(self, name: Option<&str>) -> anyhow::Result<Profile> {
        let name = name.filter(|name| !name.is_empty()).or(self.current.as_deref());
        let mut profile = name.map_or(Ok(Profile::default()), |name| self.get(name).cloned())?;
        let Profile { manager_ca, token_file, client_cert, client_key, .. } = &mut profile;
        for file in [manager_ca, token_file, client_cert, client_key].into_iter().flatten() {
            *file = self.folder.join(&*file);
        }
        Ok(profile)
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(known) {
        return Ok(());
    }
    Err(format!(
        "profile `{}`: expected a name of 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`",
        name.escape_debug()
    ))
}

/// Runs `profile`.
pub(crate) fn run(command: ProfileCommand, printer: Printer) -> anyhow::Result<()> {
    match command {
        ProfileCommand::List { file } => {
            let profiles = file.load()?;
            printer.answer(&profiles, list)
        }
        ProfileCommand::Show { name, file } => {
            let profiles = file.load()?;
            let name = name.or(profiles.current.clone());
            let name =
                name.ok_or_else(|| Failure::usage("no profile is in use: expected the name of one"))?;
            printer.answer(profiles.get(&name)?, |profile| show(&name, profile))
        }
        ProfileCommand::Set(arguments) => set(*arguments),
        ProfileCommand::Use { name, file } => file.change(|profiles| {
            profiles.get(&name)?;
            profiles.current = Some(name);
            Ok(())
        }),
        ProfileCommand::Remove { name, file } => file.change(|profiles| {
            profiles.get(&name)?;
            profiles.profiles.remove(&name);
            profiles.current.take_if(|current| *current == name);
            Ok(())
        }),
    }
}

fn list(profiles: &Profiles) -> String {
    let rows: Vec<_> = profiles
        .profiles
        .iter()
        .map(|(name, profile)| {
            let mark = if profiles.current.as_ref() == Some(name) { "*" } else { "" };
            [mark.to_owned(), name.clone(), profile.manager.clone().unwrap_or_default()]
        })
        .collect();
    output::table(["", "NAME", "MANAGER"], &rows)
}

fn show(name: &str, profile: &Profile) -> String {
    let file = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string());
    output::labelled([
        ("profile", Some(name.to_owned())),
        ("manager", profile.manager.clone()),
        ("manager_ca", file(&profile.manager_ca)),
        ("token_file", file(&profile.token_file)),
        ("client_cert", file(&profile.client_cert)),
        ("client_key", file(&profile.client_key)),
        ("key", profile.key.clone()),
        ("path", profile.path.clone()),
    ])
}

fn set(arguments: SetArguments) -> anyhow::Result<()> {
    let SetArguments { name, manager, manager_ca, token_file, client_cert, client_key, key, path, file } =
        arguments;
    check_name(&name).map_err(Failure::usage)?;
    // Names of files are given from here and kept from everywhere.
    let absolute = |file: Option<PathBuf>| -> anyhow::Result<Option<PathBuf>> {
        file.map(|file| if file.as_os_str().is_empty() { Ok(file) } else { Ok(std::path::absolute(file)?) })
            .transpose()
    };
    let files = [manager_ca, token_file, client_cert, client_key].map(absolute);
    let [manager_ca, token_file, client_cert, client_key] = files;
    let (manager_ca, token_file) = (manager_ca?, token_file?);
    let (client_cert, client_key) = (client_cert?, client_key?);
    file.change(|profiles| {
        let profile = profiles.profiles.entry(name.clone()).or_default();
        replace(&mut profile.manager, manager, String::is_empty);
        let empty = |file: &PathBuf| file.as_os_str().is_empty();
        replace(&mut profile.manager_ca, manager_ca, empty);
        replace(&mut profile.token_file, token_file, empty);
        replace(&mut profile.client_cert, client_cert, empty);
        replace(&mut profile.client_key, client_key, empty);
        replace(&mut profile.key, key, String::is_empty);
        replace(&mut profile.path, path, String::is_empty);
        // The first one is the one that is meant.
        profiles.current.get_or_insert(name);
        Ok(())
    })
}

/// What is said replaces what was; something empty removes it.
fn replace<T>(kept: &mut Option<T>, said: Option<T>, empty: impl Fn(&T) -> bool) {
    if let Some(said) = said {
        *kept = Some(said).filter(|said| !empty(said));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Profiles, String> {
        Profiles::parse(text, Path::new("/etc/tss/tssctl.toml"))
    }

    #[test]
    fn the_named_profile_goes_before_the_one_in_use_and_files_begin_at_the_file() {
        let profiles = parse(
            "current = \"a\"\n[profiles.a]\nmanager = \"https://a\"\ntoken_file = \"a.token\"\n\
             [profiles.b]\nmanager_ca = \"/b/ca.crt\"\n",
        )
        .unwrap();
        let chosen = profiles.clone().choose(None).unwrap();
        assert_eq!(chosen.manager.as_deref(), Some("https://a"));
        assert_eq!(chosen.token_file.as_deref(), Some(Path::new("/etc/tss/a.token")));
        let chosen = profiles.clone().choose(Some("b")).unwrap();
        assert_eq!((chosen.manager, chosen.manager_ca), (None, Some("/b/ca.crt".into())));
        let error = profiles.choose(Some("c")).unwrap_err().to_string();
        assert!(error.contains("no profile `c`: expected one of a, b"), "{error}");
        assert_eq!(parse("").unwrap().choose(None).unwrap(), Profile::default());
    }

    #[test]
    fn a_bad_file_is_refused_with_what_is_wrong() {
        for (text, part) in [
            ("current = \"a\"", "no profile `a`: there is none"),
            ("[profiles.a]\ntoken = \"secret\"", "unknown field `token`"),
            ("[profiles.\"a b\"]\n", "expected a name"),
            ("profiles = 3", "invalid type"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "`{part}` is missing in: {error}");
        }
    }
}
