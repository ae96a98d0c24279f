"""The checks object: each case breaks a copy of the manifests in one way, and names the check that has to find it."""

import pytest

from tests.k8s.checks import CHECKS
from tests.k8s.manifests import ROOT, Manifests
from tests.k8s.test_manifests import MANIFESTS, need

RAY, DEMO, VGG, MLFLOW = "70-ray.yaml", "jobs/demo.yaml", "jobs/vgg-e.yaml", "60-mlflow.yaml"
POSTGRESQL, REDIS, NETWORK, BOOTSTRAP = "50-postgresql.yaml", "55-redis.yaml", "20-network.yaml", "40-bootstrap.yaml"

# check, file, what is replaced (with * in front: everywhere), by what
BROKEN = [
    # What passes the API server and the operator both, and shows late or never.
    ("clusters", RAY, "groupName: cpu", "groupName: gpu"),
    ("jobs", DEMO, "submissionMode: HTTPMode", "submissionMode: HttpMode"),
    ("jobs", DEMO, "  entrypoint: jobs/demo.yaml\n", ""),
    ("clusters", RAY, "medium: Memory", "medium: memory"),
    ("clusters", DEMO, "      redisAddress: redis:6379\n", ""),
    ("clusters", RAY, "apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1"),
    # What KubeRay's operator refuses.
    ("clusters", DEMO, "        minReplicas: 1\n", ""),
    ("clusters", RAY, "minReplicas: 0", "minReplicas: 3"),
    ("clusters", RAY, "name: verydeep\n", f"name: {'v' * 54}\n"),
    ("clusters", DEMO, "{name: RAY_USAGE_STATS_ENABLED", "{name: RAY_REDIS_ADDRESS"),
    (
        "clusters",
        DEMO,
        "authOptions: {mode: token}",
        "upgradeStrategy: {type: Recreate}\n    authOptions: {mode: token}",
    ),
    ("clusters", RAY, "enableServiceLinks: false", "restartPolicy: Always\n        enableServiceLinks: false"),
    ("jobs", DEMO, "ttlSecondsAfterFinished: 3600", "ttlSecondsAfterFinished: -1"),
    ("jobs", DEMO, "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
    ("jobs", DEMO, "backoffLimit: 5", "suspend: true\n  backoffLimit: 5"),
    # What a head or a worker would do wrong.
    ("clusters", RAY, 'num-cpus: "0"', 'num-cpus: "2"'),
    ("clusters", DEMO, "{mode: token}", "{mode: disabled}"),
    ("clusters", RAY, 'object-store-memory: "500000000"', 'object-store-memory: "5000000000"'),
    ("clusters", RAY, "terminationGracePeriodSeconds: 120", "terminationGracePeriodSeconds: 60"),
    ("clusters", DEMO, r"""'"{\"driver\": 1}"'""", """'{"driver": 1}'"""),
    ("jobs", DEMO, """entrypointResources: '{"driver": 1}'""", """entrypointResources: '{"head": 1}'"""),
    ("versions", RAY, 'rayVersion: "', 'rayVersion: "1'),
    ("versions", MLFLOW, "image: verydeep:", "image: verydeep:9"),
    # Fields and types.
    ("plain_yaml", MLFLOW, 'MLFLOW_DISABLE_TELEMETRY, value: "true"', "MLFLOW_DISABLE_TELEMETRY, value: y"),
    ("plain_yaml", NETWORK, 'is-ray-node: "yes"', "is-ray-node: yes"),
    ("plain_yaml", POSTGRESQL, "  replicas: 1\n", "  replicas: 1\n  replicas: 2\n"),
    ("kubernetes", MLFLOW, "  replicas: 1\n", "  replica: 1\n"),
    ("kubernetes", MLFLOW, "timeoutSeconds: 5", 'timeoutSeconds: "5"'),
    ("kubernetes", POSTGRESQL, "apiVersion: apps/v1", "apiVersion: apps/v1beta1"),
    ("kubernetes", RAY, "enableServiceLinks: false", "enableServiceLink: false"),
    ("kubernetes", DEMO, 'RAY_USAGE_STATS_ENABLED, value: "0"', "RAY_USAGE_STATS_ENABLED, value: 0"),
    ("custom_resources", RAY, "  enableInTreeAutoscaling: true", "  enableAutoscaling: true"),
    ("custom_resources", RAY, 'num-cpus: "0"', "num-cpus: 0"),
    ("custom_resources", RAY, "version: v2", "version: v3"),
    ("custom_resources", DEMO, "backoffLimit: 5", "backofflimit: 5"),
    ("custom_resources", RAY, "apiVersion: ray.io/v1", "apiVersion: ray.io/v2"),
    ("written_out", RAY, "protocol: TCP", "hostPort: 0"),
    ("written_out", RAY, "numOfHosts: 1", "maxReplicas: 2"),
    ("written_out", RAY, "      scaleStrategy: {}\n", ""),
    ("written_out", POSTGRESQL, "        volumeMode: Filesystem", "#"),
    ("written_out", MLFLOW, '*cpu: "500m"', 'cpu: "0.5"'),
    ("written_out", NETWORK, "{protocol: TCP, port: 5432}", "{port: 5432}"),
    # What the API server's validation refuses beyond its schemas.
    ("validation", BOOTSTRAP, "restartPolicy: OnFailure", "restartPolicy: Always"),
    ("validation", RAY, "imagePullPolicy: IfNotPresent", "imagePullPolicy: ifNotPresent"),
    ("validation", DEMO, "medium: Memory", "medium: RAM"),
    ("validation", VGG, "effect: NoSchedule", "effect: NoExec"),
    ("validation", DEMO, "memory: 4Gi", "memory: 4GB"),
    ("validation", RAY, "app.kubernetes.io/component: head", "app.kubernetes.io/component: the head"),
    ("validation", NETWORK, "169.254.0.0/16", "169.254.0.1/16"),
    ("validation", "jobs/continue.yaml", '"0 22 * * *"', '"22 * * *"'),
    ("validation", "jobs/continue.yaml", "Etc/UTC", "UTC+1"),
    ("validation", "80-disruptions.yaml", "minAvailable: 1", "maxUnavailable: 0\n  minAvailable: 1"),
    ("validation", RAY, "{name: metrics, containerPort", "{name: metrics-of-prometheus, containerPort"),
    ("validation", DEMO, "RAY_USAGE_STATS_ENABLED", "HOME"),
    ("validation", MLFLOW, "periodSeconds: 5", "periodSeconds: 0"),
    ("validation", MLFLOW, "            httpGet: {path: /health, port: http}\n", ""),
    ("validation", REDIS, "accessModes: [ReadWriteOnce]", "accessModes: [RWO]"),
    # Names.
    ("names", RAY, "  name: verydeep\n", "  generateName: verydeep-\n"),
    ("names", REDIS, "  namespace: verydeep\n", ""),
    ("names", "10-accounts.yaml", "name: ray-head\n", "name: bootstrap\n"),
    ("names", "00-namespace.yaml", "kind: Namespace", "kind: Service"),
    # References.
    ("secrets", MLFLOW, "key: secret-key", "key: secretkey"),
    ("secrets", RAY, "{name: redis, key: password}", "{name: valkey, key: password}"),
    ("secrets", "jobs/continue.yaml", "key: auth_token", "key: token"),
    ("service_targets", MLFLOW, "targetPort: http", "targetPort: web"),
    (
        "service_targets",
        POSTGRESQL,
        "  selector: {app.kubernetes.io/name: postgresql}",
        "  selector: {app: postgresql}",
    ),
    ("service_targets", POSTGRESQL, "serviceName: postgresql", "serviceName: postgres"),
    ("service_targets", POSTGRESQL, "port: 5432, targetPort", "port: 5433, targetPort"),
    ("ports", MLFLOW, "--port=5000", "--port=5001"),
    ("ports", MLFLOW, "*path: /health, port: http}", "path: /health, port: web}"),
    ("volumes", DEMO, "- {name: tmp, mountPath: /tmp}", "- {name: temp, mountPath: /tmp}"),
    ("volumes", MLFLOW, "claimName: mlflow-artifacts", "claimName: artifacts"),
    ("volumes", MLFLOW, "configMap: {name: mlflow}", "configMap: {name: auth}"),
    ("volumes", RAY, "HOME, value: /data", "HOME, value: /home"),
    ("volumes", DEMO, "mountPath: /data/imagenet", "mountPath: /data/verydeep"),
    ("accounts", REDIS, "serviceAccountName: verydeep", "serviceAccountName: redis"),
    ("accounts", "10-accounts.yaml", "kind: Role, name: bootstrap", "kind: Role, name: boot"),
    ("selectors", MLFLOW, "matchLabels: {app.kubernetes.io/name: mlflow}", "matchLabels: {app: mlflow}"),
    ("selectors", DEMO, "ray.io/group: cpu", "ray.io/group: driver"),
    ("selectors", "80-disruptions.yaml", "ray.io/node-type: head", "ray.io/node-type: worker"),
    (
        "selectors",
        NETWORK,
        "podSelector: {matchLabels: {app.kubernetes.io/name: redis}}",
        "podSelector: {matchLabels: {a: b}}",
    ),
    ("hosts", RAY, "redisAddress: redis:6379", "redisAddress: redis:6380"),
    ("hosts", DEMO, "http://mlflow:5000", "http://mlflow"),
    (
        "hosts",
        MLFLOW,
        "database_uri = postgresql+psycopg2://mlflow@postgresql:5432",
        "database_uri = postgresql://postgres:5432",
    ),
    ("hosts", "jobs/continue.yaml", "verydeep-head-svc:8265", "verydeep-head:8265"),
    ("hosts", "jobs/backup.yaml", "PGHOST, value: postgresql", "PGHOST, value: postgres"),
    ("allowed_hosts", MLFLOW, "mlflow.verydeep.svc:5000,", ""),
    ("allowed_hosts", MLFLOW, "localhost:*", "*"),
    # Security.
    ("restricted", RAY, "runAsNonRoot: true", "runAsNonRoot: false"),
    ("restricted", VGG, "capabilities: {drop: [ALL]}", "capabilities: {drop: [NET_RAW]}"),
    ("restricted", MLFLOW, "allowPrivilegeEscalation: false", "privileged: false"),
    ("restricted", BOOTSTRAP, "seccompProfile: {type: RuntimeDefault}", "seccompProfile: {type: Unconfined}"),
    ("restricted", MLFLOW, "emptyDir: {sizeLimit: 10Gi}", "hostPath: {path: /tmp}"),
    ("restricted", "00-namespace.yaml", "enforce: restricted", "enforce: baseline"),
    ("hardened", REDIS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ("hardened", RAY, "*readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ("hardened", MLFLOW, "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
    ("hardened", MLFLOW, "enableServiceLinks: false", "enableServiceLinks: true"),
    ("hardened", "10-accounts.yaml", "verbs: [create]", "verbs: [create, get]"),
    ("no_secrets", REDIS, "valueFrom: {secretKeyRef: {name: redis, key: password}}", "value: redis"),
    (
        "no_secrets",
        RAY,
        "redisPassword: {valueFrom: {secretKeyRef: {name: redis, key: password}}}",
        "redisPassword: {value: x}",
    ),
    ("resources", MLFLOW, 'limits: {cpu: "500m"', 'limits: {cpu: "1"'),
    ("resources", RAY, 'nvidia.com/gpu: "8"}\n', "}\n"),
    ("resources", VGG, "key: nvidia.com/gpu", "key: gpu"),
    ("resources", DEMO, "{medium: Memory, sizeLimit: 1Gi}", "{sizeLimit: 1Gi}"),
    ("resources", DEMO, "sizeLimit: 2Gi", "sizeLimit: 6Gi"),
    ("probes", MLFLOW, "readinessProbe", "startupProbe2"),
    ("probes", POSTGRESQL, "*timeoutSeconds: 10", "timeoutSeconds: 1"),
    # Jobs.
    ("entrypoints", DEMO, "entrypoint: jobs/demo.yaml", "entrypoint: jobs/demos.yaml"),
    ("entrypoints", DEMO, "entrypoint: jobs/demo.yaml", "entrypoint: jobs/run.py"),
    ("entrypoints", DEMO, "entrypoint: jobs/demo.yaml", "entrypoint: jobs/demo.yaml --set train.epoch=1"),
    ("entrypoints", DEMO, "entrypoint: jobs/demo.yaml", "entrypoint: jobs/demo.yaml --fast"),
    ("entrypoints", VGG, '*nvidia.com/gpu: "8"', 'nvidia.com/gpu: "4"'),
    ("entrypoints", DEMO, "entrypoint: jobs/demo.yaml", "entrypoint: jobs/demo.yaml --set cluster.workers=9"),
    ("entrypoints", "jobs/prepare-imagenet.yaml", "--devkit=", "--dev-kit="),
    ("entrypoints", "jobs/continue.yaml", "jobs/vgg_e.yaml]", "jobs/vgg-e.yaml]"),
    ("entrypoints", BOOTSTRAP, "k8s.bootstrap", "k8s.boot"),
    ("entrypoints", RAY, "cluster.leave", "cluster.drain"),
    ("job_files", DEMO, "entrypoint: jobs/demo.yaml", "entrypoint: jobs/photos.yaml"),
]


def test_every_check_is_broken_by_some_case() -> None:
    assert {check for check, *_ in BROKEN} == set(CHECKS)


@pytest.mark.parametrize(("check", "file", "old", "new"), BROKEN)
def test_the_check_objects(check: str, file: str, old: str, new: str) -> None:
    need(check)
    broken = MANIFESTS.changed(file, old, new)
    assert list(CHECKS[check](broken)) != []


def test_a_second_object_of_the_same_name_is_found() -> None:
    twice = Manifests({**MANIFESTS.texts, "90-more.yaml": MANIFESTS.texts["30-volumes.yaml"]}, ROOT)
    assert any("is there twice" in problem for problem in CHECKS["names"](twice))
