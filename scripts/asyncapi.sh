#!/usr/bin/env bash
# Holds docs/asyncapi.yaml against the official JSON schema of AsyncAPI 3.0.0, which lies beside this script (from
# @asyncapi/specs 6.11.1, Apache-2.0), and makes sure that it would find a fault. The validator is the one that schemathesis brings.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/need.sh schemathesis
target/schemathesis/bin/python - <<'EOF'
import copy, json, sys
import jsonschema_rs, yaml

schema = json.load(open("scripts/asyncapi-3.0.0.schema.json"))
document = yaml.safe_load(open("docs/asyncapi.yaml"))
validator = jsonschema_rs.Draft7Validator(schema)
faults = [f"/{'/'.join(map(str, e.instance_path))}: {e.message[:300]}" for e in validator.iter_errors(document)]
for fault in faults[:20]:
    print(fault, file=sys.stderr)

def broken(change):
    other = copy.deepcopy(document)
    change(other)
    return not validator.is_valid(other)

assert broken(lambda d: d.pop("info"))
assert broken(lambda d: d["operations"]["hear"].update(action="listen"))
assert broken(lambda d: d["channels"]["socket"].update(messages=[]))
assert broken(lambda d: d["components"]["schemas"]["Seq"].update(type="number of an event"))
print(f"docs/asyncapi.yaml: {len(document['components']['messages'])} messages, {len(faults)} faults")
sys.exit(bool(faults))
EOF
