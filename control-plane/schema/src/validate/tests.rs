use serde_json::json;

use super::*;
use crate::kind_by_gvk;
