#!/usr/bin/env python3
"""Generates data/types.txt and data/openapi.txt.gz. Run by hand when the Kubernetes version moves.

    pip download --no-deps kubernetes-validate==1.37.0      # Apache-2.0, carries upstream's swagger as JSON schema
    unzip kubernetes_validate-*.whl 'kubernetes_validate/kubernetes-json-schema/v1.36.0-local/_definitions.json'
    cargo fetch                                             # for k8s-pb 0.9, Apache-2.0: upstream's .proto as prost structs
    generate.py _definitions.json PATH/TO/k8s-pb-0.9.0/src src/kinds/rows.rs data/

types.txt: one line per type and field, tab separated, read by src/types.rs.
    T<TAB>type name<TAB>type flags
    <TAB>JSON name<TAB>protobuf tag or -<TAB>shape<TAB>flags
shape: [ (list) or { (map of string) before one of
    s string  i int32  j int64  b boolean  n double  y bytes  q Quantity  x IntOrString  t Time  u MicroTime
    d Duration  r any JSON (RawExtension)  f FieldsV1  @TYPE a type of this file
flags: ! required | ~ the message's fields stand inline in JSON | l=atomic, l=set, l=map:KEYS (list type)
    | m=atomic (map type) | p=STRATEGIES (patch strategy) | k=KEY (patch merge key) | e= (enum values, comma separated)

openapi.txt.gz: one line per type, `name<TAB>OpenAPI v3 schema`, with references as #/components/schemas/NAME.
"""
import gzip, json, os, re, sys

defs_file, pb_src, rows_file, out_dir = sys.argv[1:5]
DEFS = json.load(open(defs_file))['$defs']

META = 'io.k8s.apimachinery.pkg.apis.meta.v1.'
SPECIAL = {
    'io.k8s.apimachinery.pkg.api.resource.Quantity': 'q',
    'io.k8s.apimachinery.pkg.util.intstr.IntOrString': 'x',
    'io.k8s.apimachinery.pkg.runtime.RawExtension': 'r',
    META + 'Time': 't', META + 'MicroTime': 'u', META + 'Duration': 'd', META + 'FieldsV1': 'f',
}
EXTRA_ROOTS = ['io.k8s.api.autoscaling.v1.Scale', 'io.k8s.api.policy.v1.Eviction',
               'io.k8s.api.authentication.v1.TokenRequest', 'io.k8s.api.core.v1.Binding',
               META + 'DeleteOptions', META + 'Status', META + 'ObjectMeta', META + 'ListMeta']

# ---- protobuf: prost structs -> {type: {field name without case and underscores: (tag, type text)}}
PACKAGES = [('apimachinery/', 'io.k8s.apimachinery.'), ('api/', 'io.k8s.api.'),
            ('apiextensions_apiserver/', 'io.k8s.apiextensions-apiserver.')]
messages = {}
for prefix, package in PACKAGES:
    for base, _, files in os.walk(os.path.join(pb_src, prefix)):
        for name in files:
            path = os.path.join(base, name)
            module = os.path.relpath(base, os.path.join(pb_src, prefix)).replace('/', '.')
            text = re.sub(r'^\s*///.*$', '', open(path).read(), flags=re.M)
            for struct in re.finditer(r'pub struct (\w+) \{(.*?)\n\}', text, re.S):
                fields = {}
                for field in re.finditer(r'#\[prost\(([^\]]*)\)\]\s*pub (?:r#)?(\w+):', struct.group(2)):
                    tag = re.search(r'tag\s*=\s*"(\d+)"', field.group(1)).group(1)
                    fields[field.group(2).replace('_', '').lower()] = (tag, field.group(1))
                # the message type of each field, for fields that are inline in JSON
                types = {}
                for field in re.finditer(r'pub (?:r#)?(\w+):\s*(.*?),\n', struct.group(2) + ',\n', re.S):
                    types[field.group(1).replace('_', '').lower()] = re.sub(r'\s', '', field.group(2))
                messages[(package + module + '.' + struct.group(1)).lower()] = (fields, types)   # prost turns HTTPGet into HttpGet

def proto_ref(owner, text):
    """Full name of the message that a Rust type text such as Option<super::Foo> names."""
    inner = re.findall(r'[\w:]+', text)
    last = [i for i in inner if i and i.split('::')[-1][0].isupper() and i.split('::')[-1] not in
            ('Option', 'Vec', 'BTreeMap', 'String', 'Box')]
    if not last:
        return None
    parts = last[-1].split('::')
    if len(parts) == 1:
        return owner.rsplit('.', 1)[0] + '.' + parts[0]
    parts = [p for p in parts if p not in ('super', 'crate')]
    return 'io.k8s.' + '.'.join(parts) if parts[0] in ('api', 'apimachinery') else owner.rsplit('.', 1)[0] + '.' + parts[-1]

# ---- shapes
def strip_null(node):
    kind = node.get('type')
    if isinstance(kind, list):
        kind = [k for k in kind if k != 'null'][0]
    return kind

def shape(node, todo):
    ref = node.get('$ref')
    if ref:
        name = ref.rsplit('/', 1)[1]
        if name in SPECIAL:
            return SPECIAL[name]
        target = DEFS[name]
        if 'properties' not in target:          # a named string, map or list, or any JSON
            if strip_null(target) == 'object' and 'additionalProperties' not in target:
                return 'r'
            if 'type' not in target:
                return 'r'
            return shape(target, todo)
        todo.append(name)
        return '@' + name
    kind = strip_null(node)
    if kind == 'array':
        return '[' + shape(node['items'], todo)
    if kind == 'object':
        if 'additionalProperties' in node:
            return '{' + shape(node['additionalProperties'], todo)
        return 'r'
    if kind == 'string':
        return {'byte': 'y', 'date-time': 't'}.get(node.get('format'), 's')
    if kind == 'integer' and node.get('format') == 'int64':
        return 'j'
    return {'integer': 'i', 'boolean': 'b', 'number': 'n'}.get(kind, 'r')

def flags(name, node, required):
    out = []
    if name in required: out.append('!')
    kind = node.get('x-kubernetes-list-type')
    if kind: out.append('l=' + kind + (':' + ','.join(node.get('x-kubernetes-list-map-keys', [])) if kind == 'map' else ''))
    if node.get('x-kubernetes-map-type'): out.append('m=' + node['x-kubernetes-map-type'])
    if node.get('x-kubernetes-patch-strategy'): out.append('p=' + node['x-kubernetes-patch-strategy'])
    if node.get('x-kubernetes-patch-merge-key'): out.append('k=' + node['x-kubernetes-patch-merge-key'])
    if node.get('enum') and name not in ('kind', 'apiVersion'): out.append('e=' + ','.join(str(e) for e in node['enum'] if e))
    return out

rows = open(rows_file).read()
roots = sorted(set(re.findall(r'io\.k8s\.api\.[\w.]+', rows))) + EXTRA_ROOTS
missing_proto, missing_fields, lines, seen, todo = [], [], [], set(), list(roots)
while todo:
    name = todo.pop(0)
    if name in seen: continue
    seen.add(name)
    node = DEFS[name]
    required = set(node.get('required', []))
    fields, types = messages.get(name.lower(), ({}, {}))
    if not fields: missing_proto.append(name)
    type_flags = ['m=' + node['x-kubernetes-map-type']] if node.get('x-kubernetes-map-type') else []
    lines.append('\t'.join(['T', name] + ([' '.join(type_flags)] if type_flags else [])))
    used = set()
    for field in sorted(node.get('properties', {})):
        key = field.replace('_', '').replace('$', '').lower()
        tag = fields.get(key, ('-', ''))[0]
        if tag != '-': used.add(key)
        elif field not in ('kind', 'apiVersion'): missing_fields.append((name, field))
        prop = node['properties'][field]
        lines.append('\t'.join(['', field, tag, shape(prop, todo), ' '.join(flags(field, prop, required))]).rstrip())
    for key in sorted(set(fields) - used):     # in protobuf only: a message whose fields are inline in JSON
        ref = proto_ref(name, types.get(key, ''))
        inline = ref and key in (ref.rsplit('.', 1)[1].lower(), 'handler')
        if inline and ref.lower() in messages:
            if ref not in DEFS:
                # a message without a JSON schema of its own: its fields are those of the owner
                lines.append('\t'.join(['', key, fields[key][0], '@' + ref, '~']))
                if ref not in seen:
                    seen.add(ref)
                    extra = ['T\t' + ref]
                    inner_fields, _ = messages[ref.lower()]
                    for prop_name in sorted(node.get('properties', {})):
                        k = prop_name.lower()
                        if k in inner_fields:
                            prop = node['properties'][prop_name]
                            extra.append('\t'.join(['', prop_name, inner_fields[k][0], shape(prop, todo),
                                                     ' '.join(flags(prop_name, prop, required))]).rstrip())
                    lines += ['@@' + json.dumps(extra)]
            else:
                lines.append('\t'.join(['', key, fields[key][0], '@' + ref, '~']))
                todo.append(ref)
        else:
            missing_proto.append('proto only: ' + name + '.' + key + ' ' + types.get(key, ''))

body, late = [], []
for line in lines:
    if line.startswith('@@'): late += json.loads(line[2:])
    else: body.append(line)
head = ['# Facts of the Kubernetes 1.36 API (Apache-2.0), generated by generate.py from kubernetes-validate 1.37.0',
        '# and k8s-pb 0.9.0; see the head of generate.py for the format. Not edited by hand.']
open(os.path.join(out_dir, 'types.txt'), 'w').write('\n'.join(head + body + late) + '\n')

# ---- OpenAPI v3 schemas
def convert(node, name=None):
    if isinstance(node, list): return [convert(n) for n in node]
    if not isinstance(node, dict): return node
    if '$ref' in node:
        ref = {'$ref': '#/components/schemas/' + node['$ref'].rsplit('/', 1)[1]}
        rest = {k: v for k, v in node.items() if k != '$ref'}
        return {'allOf': [ref], **convert(rest)} if rest else ref
    out = {}
    for key, value in node.items():
        if key == 'type': out[key] = strip_null(node)
        elif key == 'properties': out[key] = {k: convert(v, k) for k, v in value.items()}
        elif key == 'enum' and name in ('kind', 'apiVersion'): continue
        elif key == 'enum': out[key] = [v for v in value if v is not None]
        elif key in ('description', 'required', 'format') or key.startswith('x-kubernetes-'): out[key] = value
        else: out[key] = convert(value)
    return out

OVERRIDE = {
    'io.k8s.apimachinery.pkg.util.intstr.IntOrString': {'format': 'int-or-string', 'oneOf': [{'type': 'integer'}, {'type': 'string'}]},
    'io.k8s.apimachinery.pkg.api.resource.Quantity': {'oneOf': [{'type': 'string'}, {'type': 'number'}]},
}
api_lines = []
names, todo = set(), list(roots)
while todo:
    name = todo.pop()
    if name in names: continue
    names.add(name)
    todo += re.findall(r'#/\$defs/([\w.-]+)', json.dumps(DEFS[name]))
for name in sorted(names):
    schema = convert(DEFS[name])
    schema.update(OVERRIDE.get(name, {}))
    api_lines.append(name + '\t' + json.dumps(schema, separators=(',', ':'), ensure_ascii=False))
text = '\n'.join(api_lines) + '\n'
with open(os.path.join(out_dir, 'openapi.txt.gz'), 'wb') as out:
    with gzip.GzipFile(filename='', mode='wb', compresslevel=9, fileobj=out, mtime=0) as zipped:
        zipped.write(text.encode())
print(len(seen), 'types,', len(body) + len(late), 'lines;', len(names), 'schemas,', len(text), 'bytes before gzip')
inline_owners = {}
for line in body:
    if line.startswith('T\t'): owner = line.split('\t')[1]
    elif line.endswith('~'): inline_owners.setdefault(owner, []).append(line.split('\t')[3][1:].lower())
for owner, field in missing_fields:
    if not any(field.lower() in messages[m][0] for m in inline_owners.get(owner, [])) and owner.lower() in messages:
        missing_proto.append(owner + '.' + field)
print('without protobuf:', *missing_proto, sep='\n  ')
