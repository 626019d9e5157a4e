//! `#[derive(State)]`: a struct as the state of a graph, each field a channel.
//!
//! ```ignore
//! #[derive(State)]
//! struct Review {
//!     #[channel(merge_by_id)] messages: Vec<Message>,
//!     #[channel(append)]      findings: Vec<Finding>,
//!     draft: Option<Draft>,                              // the last value stands
//! }
//! ```
//!
//! It makes `Review::update()` and the type `ReviewUpdate` with one method per field that adds to the
//! channel, and one `set_…` method per list that replaces it. Use it through `clearway::graph::State`,
//! whose documentation says what each reducer does.
//!
//! Not here: what the generated code does, which is all in `clearway::graph`.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::{
    Data, DeriveInput, Error, Field, Fields, GenericArgument, Ident, LitStr, PathArguments, Type,
};

/// See the crate.
#[proc_macro_derive(State, attributes(channel))]
pub fn derive_state(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(input: &DeriveInput) -> Result<TokenStream, Error> {
    if let Some(parameter) = input.generics.params.first() {
        let text = "a state has no generic parameters: what is stored has one shape";
        return Err(Error::new_spanned(parameter, text));
    }
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, "a state is a struct with named fields"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(&input.ident, "a state is a struct with named fields"));
    };
    let channels = fields.named.iter().map(Channel::read).collect::<Result<Vec<_>, _>>()?;
    for (at, channel) in channels.iter().enumerate() {
        if channels[..at].iter().any(|other| other.name == channel.name) {
            let text = format!("two fields are the channel `{}`", channel.name);
            return Err(Error::new_spanned(&channel.ident, text));
        }
    }
    Ok(generate(input, &channels))
}

/// One field.
struct Channel {
    ident: Ident,
    ty: Type,
    /// Its name in the stored state and on the wire.
    name: String,
    reducer: Reducer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reducer {
    Last,
    Append,
    MergeById,
    Set,
    Merge,
}

impl Reducer {
    fn path(self) -> TokenStream {
        let variant = match self {
            Self::Last => format_ident!("Last"),
            Self::Append => format_ident!("Append"),
            Self::MergeById => format_ident!("MergeById"),
            Self::Set => format_ident!("Set"),
            Self::Merge => format_ident!("Merge"),
        };
        quote!(::clearway::graph::Reducer::#variant)
    }
}

impl Channel {
    fn read(field: &Field) -> Result<Self, Error> {
        let ident = field.ident.clone().expect("fields of a struct with named fields have names");
        let (mut name, mut reducer) = (ident.to_string(), Reducer::Last);
        for attribute in field.attrs.iter().filter(|it| it.path().is_ident("channel")) {
            attribute.parse_nested_meta(|meta| {
                let word = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
                match word.as_str() {
                    "last" => reducer = Reducer::Last,
                    "append" => reducer = Reducer::Append,
                    "merge_by_id" => reducer = Reducer::MergeById,
                    "set" => reducer = Reducer::Set,
                    "merge" => reducer = Reducer::Merge,
                    "name" => name = meta.value()?.parse::<LitStr>()?.value(),
                    _ => {
                        let known = "last, append, merge_by_id, set, merge, name = \"…\"";
                        return Err(meta.error(format!("not known here; known are: {known}")));
                    }
                }
                Ok(())
            })?;
        }
        if name.is_empty() || name.contains('/') || name.starts_with("__") {
            let text = "a channel's name is not empty, has no `/` and does not begin with `__`";
            return Err(Error::new_spanned(&ident, text));
        }
        let is_list = !matches!(reducer, Reducer::Last | Reducer::Merge);
        if is_list && argument(&field.ty, "Vec").is_none() {
            return Err(Error::new_spanned(&field.ty, "a channel that is a list is a `Vec`"));
        }
        Ok(Self { ident, ty: field.ty.clone(), name, reducer })
    }

    /// The methods of the update.
    fn setters(&self) -> TokenStream {
        let Self { ident, ty, name, reducer } = self;
        if matches!(reducer, Reducer::Last | Reducer::Merge) {
            let doc = match reducer {
                Reducer::Merge => format!("Replaces the fields of `{name}` that this has."),
                _ => format!("Sets `{name}`; only one call of a superstep may."),
            };
            let (accepts, convert) = if argument(ty, "Option").is_some() || is(ty, "String") {
                (quote!(impl ::core::convert::Into<#ty>), quote!(let value: #ty = value.into();))
            } else {
                (quote!(#ty), quote!())
            };
            return quote! {
                #[doc = #doc]
                #[must_use]
                pub fn #ident(mut self, value: #accepts) -> Self {
                    #convert
                    self.writes.put(#name, &value);
                    self
                }
            };
        }
        let item = argument(ty, "Vec");
        let set = format_ident!("set_{}", ident, span = Span::call_site());
        let verb = match reducer {
            Reducer::Append | Reducer::Last | Reducer::Merge => "Adds to the end of",
            Reducer::MergeById => "Adds to, or replaces by `id` in,",
            Reducer::Set => "Adds what is not there yet to",
        };
        let (add_doc, set_doc) =
            (format!("{verb} `{name}`."), format!("Replaces all of `{name}`."));
        quote! {
            #[doc = #add_doc]
            #[must_use]
            pub fn #ident(mut self, items: impl ::core::iter::IntoIterator<Item = #item>) -> Self {
                let items: #ty = items.into_iter().collect();
                self.writes.put(#name, &items);
                self
            }

            #[doc = #set_doc]
            #[must_use]
            pub fn #set(mut self, value: #ty) -> Self {
                self.writes.replace(#name, &value);
                self
            }
        }
    }
}

fn generate(input: &DeriveInput, channels: &[Channel]) -> TokenStream {
    let (state, visibility) = (&input.ident, &input.vis);
    let update = format_ident!("{}Update", state);
    let doc = format!("Writes to the channels of [`{state}`].");
    let names: Vec<_> = channels.iter().map(|channel| &channel.name).collect();
    let idents: Vec<_> = channels.iter().map(|channel| &channel.ident).collect();
    let reducers = channels.iter().map(|channel| channel.reducer.path());
    let setters = channels.iter().map(Channel::setters);
    quote! {
        #[doc = #doc]
        #[derive(Debug, Default)]
        #[must_use]
        #visibility struct #update {
            writes: ::clearway::graph::Writes,
        }

        #[allow(dead_code, unreachable_pub, reason = "not every state uses every setter")]
        impl #update {
            #(#setters)*
        }

        #[allow(dead_code, unreachable_pub, reason = "a state may be only read")]
        impl #state {
            /// An update that writes nothing yet.
            pub fn update() -> #update {
                #update::default()
            }
        }

        impl ::core::convert::From<#update> for ::clearway::graph::Writes {
            fn from(update: #update) -> Self {
                update.writes
            }
        }

        impl ::core::convert::From<#update> for ::clearway::graph::Next<#state> {
            fn from(update: #update) -> Self {
                Self::writing(update.writes)
            }
        }

        impl ::clearway::graph::State for #state {
            type Update = #update;

            fn channels() -> ::std::vec::Vec<(&'static str, ::clearway::graph::Reducer)> {
                ::std::vec![#((#names, #reducers)),*]
            }

            fn read(
                values: &::clearway::graph::Values<'_>,
            ) -> ::core::result::Result<Self, ::clearway::graph::Error> {
                ::core::result::Result::Ok(Self { #(#idents: values.get(#names)?),* })
            }

            fn write_all(&self) -> ::clearway::graph::Writes {
                let mut writes = ::clearway::graph::Writes::default();
                #(writes.replace(#names, &self.#idents);)*
                writes
            }
        }
    }
}

/// `T` of `Outer<T>`.
fn argument<'a>(ty: &'a Type, outer: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|segment| segment.ident == outer)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first()? {
        GenericArgument::Type(inner) => Some(inner),
        _ => None,
    }
}

fn is(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let input = syn::parse_str(text).map_err(|error| error.to_string())?;
        expand(&input).map(|tokens| tokens.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_field_is_a_channel() {
        let text = expanded(
            "struct S { #[channel(append)] log: Vec<String>, #[channel(name = \"d\")] draft: Option<u8> }",
        )
        .unwrap();
        assert!(text.contains("SUpdate"), "{text}");
        assert!(text.contains("(\"log\" , :: clearway :: graph :: Reducer :: Append)"), "{text}");
        assert!(text.contains("(\"d\" , :: clearway :: graph :: Reducer :: Last)"), "{text}");
        assert!(text.contains("fn set_log") && !text.contains("fn set_draft"), "{text}");
    }

    #[test]
    fn what_is_no_state_is_refused() {
        for (text, why) in [
            ("enum E { A }", "a struct with named fields"),
            ("struct S(u8);", "a struct with named fields"),
            ("struct S<T> { a: T }", "no generic parameters"),
            ("struct S { #[channel(append)] a: u8 }", "is a `Vec`"),
            ("struct S { #[channel(apend)] a: Vec<u8> }", "not known here"),
            ("struct S { #[channel(name = \"b\")] a: u8, b: u8 }", "two fields"),
            ("struct S { #[channel(name = \"a/b\")] a: u8 }", "has no `/`"),
        ] {
            let error = expanded(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
