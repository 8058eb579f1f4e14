//! What was listed and watched of one kind: what a new list does not name any more is gone.

use std::collections::BTreeSet;

use api::watch::Event;

use crate::parse::Key;

/// A change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// It is there, like this.
    Set(Key, T),
    /// It is gone.
    Gone(Key),
}

/// Turns list-and-watch events into changes.
#[derive(Debug, Default)]
pub struct Listed {
    /// Known objects.
    known: BTreeSet<Key>,
    /// Those of the list under way.
    listing: Option<BTreeSet<Key>>,
    complete: bool,
}

impl Listed {
    /// Whether a list was complete once.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What an event changes.
    pub fn take<T: api::meta::Resource>(&mut self, event: Event<T>) -> Vec<Change<T>> {
        let key = |object: &T| Key::new(&object.meta().namespace, &object.meta().name);
        match event {
            Event::Init => {
                self.listing = Some(BTreeSet::new());
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let key = key(&object);
                if let Some(listing) = &mut self.listing {
                    listing.insert(key.clone());
                }
                self.known.insert(key.clone());
                vec![Change::Set(key, object)]
            }
            Event::Delete(object) => {
                let key = key(&object);
                self.known.remove(&key);
                vec![Change::Gone(key)]
            }
            Event::InitDone => {
                self.complete = true;
                let Some(listed) = self.listing.take() else {
                    return Vec::new();
                };
                let gone = self.known.difference(&listed).cloned().collect::<Vec<_>>();
                self.known = listed;
                gone.into_iter().map(Change::Gone).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use api::meta::ObjectMeta;
    use api::pod::Namespace;

    use super::*;

    #[test]
    fn a_new_list_replaces_what_was_known() {
        let named = |name: &str| Namespace {
            metadata: ObjectMeta {
                name: name.to_owned(),
                ..ObjectMeta::default()
            },
        };
        let mut listed = Listed::default();
        for (event, changes) in [
            (Event::Init, 0),
            (Event::InitApply(named("a")), 1),
            (Event::InitApply(named("b")), 1),
        ] {
            assert_eq!(listed.take(event).len(), changes);
            assert!(!listed.is_complete());
        }
        assert_eq!(listed.take(Event::<Namespace>::InitDone), []);
        assert!(listed.is_complete());
        for event in [
            Event::Init,
            Event::InitApply(named("b")),
            Event::Apply(named("c")),
        ] {
            listed.take(event);
        }
        let gone = listed.take(Event::<Namespace>::InitDone);
        assert_eq!(gone, [Change::Gone(Key::new("", "a"))]);
        assert_eq!(listed.take(Event::Delete(named("c"))).len(), 1);
    }
}
