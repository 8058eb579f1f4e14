//! The API server's part in a [`Sim`]: what becomes of a write.

use serde_json::{Value, json};

use super::{Sim, decode, key_of, stamp};
use crate::engine::brain::Answer;
use crate::kinds::Kind;
use crate::view::Key;
use crate::write::{PatchKind, Propagation, Target, Write};

/// HTTP status and message.
type Refused = (u16, String);

impl Sim {
    pub(super) fn write(&mut self, write: &Write) -> Result<Answer, Refused> {
        match write {
            Write::Create {
                kind,
                namespace,
                object,
                announce,
            } => {
                let result = self.create(*kind, namespace, object);
                if let Some(announce) = announce {
                    let note = if result.is_ok() {
                        &announce.done
                    } else {
                        &announce.failed
                    };
                    self.notes.extend(note.clone());
                }
                result
            }
            Write::Patch {
                target, how, body, ..
            } => self.patch(target, *how, body),
            Write::Delete {
                target,
                uid,
                grace_seconds,
                propagation,
                announce,
            } => {
                if let Some(note) = announce.as_ref().and_then(|it| it.done.clone()) {
                    self.notes.push(note);
                }
                let _ = grace_seconds;
                self.delete_target(target, Some(uid), *propagation)
            }
            Write::Bind {
                namespace,
                pod,
                node,
                ..
            } => {
                let key = (Kind::Pod, Key::new(namespace, pod));
                let mut object = self
                    .objects
                    .get(&key)
                    .cloned()
                    .ok_or((404, "pod".to_owned()))?;
                if !object["spec"]["nodeName"].is_null() {
                    return Err((409, format!("pod {pod} is already assigned")));
                }
                object["spec"]["nodeName"] = json!(node);
                self.store(Kind::Pod, key.1, object);
                Ok(Answer::Nothing)
            }
            Write::AssignPodCidrs { node, body, .. } => {
                self.patch(&Target::new(Kind::Node, "", node), PatchKind::Merge, body)
            }
            Write::Event(note) => {
                self.notes.push(note.clone());
                Ok(Answer::Nothing)
            }
            Write::ProbeOwner { target, uid } => {
                let present = target.kind.is_some_and(|kind| {
                    self.get(kind, &target.namespace, &target.name)
                        .is_some_and(|object| object["metadata"]["uid"] == **uid)
                });
                Ok(Answer::Owner {
                    uid: uid.clone(),
                    present,
                })
            }
            Write::EmptyNamespace { uid, .. } => Ok(Answer::Emptied {
                uid: uid.clone(),
                remaining: crate::view::Remaining::default(),
            }),
            Write::FinalizeNamespace { name } => {
                let key = Key::new("", name);
                let mut object = self.objects[&(Kind::Namespace, key.clone())].clone();
                object["spec"]["finalizers"] = json!([]);
                self.store(Kind::Namespace, key, object);
                Ok(Answer::Nothing)
            }
        }
    }

    fn create(&mut self, kind: Kind, namespace: &str, object: &Value) -> Result<Answer, Refused> {
        if self.refuse == Some(kind) {
            return Err((403, "exceeded quota".to_owned()));
        }
        let mut object = object.clone();
        if object["metadata"]["name"].is_null() {
            let prefix = object["metadata"]["generateName"]
                .as_str()
                .unwrap()
                .to_owned();
            object["metadata"]["name"] = json!(format!("{prefix}{}", self.version));
        }
        object["metadata"]["namespace"] = json!(namespace);
        let key = key_of(&object);
        if self.objects.contains_key(&(kind, key.clone())) {
            return Err((409, format!("{key} already exists")));
        }
        self.put(kind, object);
        let stored = self.objects[&(kind, key)].clone();
        Ok(Answer::Created(decode(kind, &stored)))
    }

    fn patch(&mut self, target: &Target, how: PatchKind, body: &Value) -> Result<Answer, Refused> {
        let kind = target.kind.unwrap();
        let key = Key::new(&target.namespace, &target.name);
        let Some(old) = self.objects.get(&(kind, key.clone())).cloned() else {
            return Ok(Answer::Nothing);
        };
        for field in ["resourceVersion", "uid"] {
            let wanted = &body["metadata"][field];
            if !wanted.is_null() && *wanted != old["metadata"][field] {
                return Err((409, format!("{key}: the object has been modified")));
            }
        }
        let mut object = old.clone();
        merge(&mut object, body, how);
        for field in ["resourceVersion", "uid"] {
            object["metadata"][field] = old["metadata"][field].clone();
        }
        if object["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = json!(generation);
        }
        if object == old {
            return Ok(Answer::Changed(decode(kind, &old)));
        }
        self.store(kind, key.clone(), object);
        Ok(self
            .objects
            .get(&(kind, key))
            .map_or(Answer::Nothing, |object| {
                Answer::Changed(decode(kind, object))
            }))
    }

    pub(super) fn delete_target(
        &mut self,
        target: &Target,
        uid: Option<&str>,
        propagation: Option<Propagation>,
    ) -> Result<Answer, Refused> {
        let kind = target.kind.unwrap();
        let key = Key::new(&target.namespace, &target.name);
        let gone = |uid: &str| Answer::Deleted {
            kind: Some(kind),
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: uid.to_owned(),
        };
        let Some(mut object) = self.objects.get(&(kind, key.clone())).cloned() else {
            return Ok(gone(uid.unwrap_or_default()));
        };
        let known = object["metadata"]["uid"].as_str().unwrap().to_owned();
        if uid.is_some_and(|uid| uid != known) {
            return Err((409, format!("{key}: uid is {known}")));
        }
        let finalizer = match propagation {
            Some(Propagation::Foreground) => Some("foregroundDeletion"),
            Some(Propagation::Orphan) => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let mut list = object["metadata"]["finalizers"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            if !list.contains(&json!(finalizer)) {
                list.push(json!(finalizer));
            }
            object["metadata"]["finalizers"] = Value::Array(list);
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(stamp(self.seconds));
        }
        self.store(kind, key.clone(), object);
        Ok(match self.objects.get(&(kind, key)) {
            Some(object) => Answer::Changed(decode(kind, object)),
            None => gone(&known),
        })
    }
}

/// JSON merge patch; strategic: lists of conditions are merged by type.
fn merge(into: &mut Value, patch: &Value, how: PatchKind) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, change) in patch {
        if change.is_null() {
            into.as_object_mut().unwrap().remove(field);
        } else if field == "conditions" && how == PatchKind::Strategic {
            let mut list = into[field].as_array().cloned().unwrap_or_default();
            for condition in change.as_array().unwrap() {
                list.retain(|known| known["type"] != condition["type"]);
                list.push(condition.clone());
            }
            into[field] = Value::Array(list);
        } else {
            merge(&mut into[field], change, how);
        }
    }
}
