//! Enums whose names stand in JSON, and of which a later manager may know more.

/// An enum of names, and `Other` for one that is read and not known here. What is sent is known: see `from_str`.
macro_rules! names {
    ($(#[$about:meta])* pub enum $type:ident, $what:literal {
        $($(#[$doc:meta])* $variant:ident = $name:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum $type {
            $($(#[$doc])* $variant,)*
            /// One that this client does not know.
            Other(String),
        }

        impl $type {
            /// The name, as it stands in JSON.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Other(name) => name,
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl From<String> for $type {
            fn from(name: String) -> Self {
                match name.as_str() {
                    $($name => Self::$variant,)*
                    _ => Self::Other(name),
                }
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.as_str().to_owned()
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            /// The known one of this name.
            fn from_str(name: &str) -> Result<Self, String> {
                match name.to_owned().into() {
                    Self::Other(name) => {
                        let known = [$($name),*].join(", ");
                        Err(format!(concat!("unknown ", $what, " `{}`: expected one of {}"), name, known))
                    }
                    known => Ok(known),
                }
            }
        }
    };
}

pub(crate) use names;

#[cfg(test)]
mod tests {
    names! {
        /// A colour.
        pub enum Colour, "colour" {
            /// Red.
            Red = "red",
            /// Green.
            Green = "green",
        }
    }

    #[test]
    fn an_unknown_name_is_read_and_written_and_not_chosen() {
        let read: Vec<Colour> = serde_json::from_str(r#"["red", "mauve"]"#).unwrap();
        assert_eq!(read, [Colour::Red, Colour::Other("mauve".into())]);
        assert_eq!(serde_json::to_string(&read).unwrap(), r#"["red","mauve"]"#);
        assert_eq!("green".parse(), Ok(Colour::Green));
        let error = "mauve".parse::<Colour>().unwrap_err();
        assert_eq!(error, "unknown colour `mauve`: expected one of red, green");
    }
}
