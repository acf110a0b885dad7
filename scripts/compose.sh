#!/usr/bin/env bash
# Holds docker-compose.yml against the schema of the Compose Specification, which lies beside this script (from compose-go 2.16.2,
# Apache-2.0), and makes sure that it would find a fault. The validator is the one that schemathesis brings. What the variables in
# it mean to posthaste is tested in posthaste/tests/compose.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/need.sh schemathesis
target/schemathesis/bin/python - <<'EOF'
import copy, json, sys
import jsonschema_rs, yaml

schema = json.load(open("scripts/compose-spec.schema.json"))
document = yaml.safe_load(open("docker-compose.yml"))
validator = jsonschema_rs.Draft202012Validator(schema)
faults = [f"/{'/'.join(map(str, e.instance_path))}: {e.message[:300]}" for e in validator.iter_errors(document)]
services = document["services"]
for name, service in services.items():
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            faults.append(f"{name} depends on {other}, which is no service")
        elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
            faults.append(f"{name} waits for the health of {other}, which has no check")
for fault in faults[:20]:
    print(fault, file=sys.stderr)

def broken(change):
    other = copy.deepcopy(document)
    change(other["services"])
    return not validator.is_valid(other)

assert broken(lambda s: s["tables"]["depends_on"]["cassandra-1"].update(condition="service_ready"))
assert broken(lambda s: s["edge-1"].update(enviroment={}))
assert broken(lambda s: s["edge-1"]["healthcheck"].update(test=5))
print(f"docker-compose.yml: {len(services)} services, {len(faults)} faults")
sys.exit(bool(faults))
EOF
