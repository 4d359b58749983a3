"""deploy/k8s: Kubernetes' own kinds by its published schemas, KEDA's by its published fields, and who refers to what."""

from __future__ import annotations

import copy
import re
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest

from agentlightning.core.log.kafka.address import KafkaAddress

from .manifests import K8S, by_kind, containers, load, resources

VERSIONS = ("1.30", "1.33", kubernetes_validate.latest_version())

# KEDA 2.x, "Scaling Deployments", "Authentication" and "Apache Kafka" of its documentation. Field -> accepted values.
SCALED_OBJECT = {
    "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount",
    "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers",
}  # fmt: skip
SCALE_TARGET = {"apiVersion", "kind", "name", "envSourceContainerName"}
ADVANCED = {"restoreToOriginalReplicaCount", "horizontalPodAutoscalerConfig", "scalingModifiers"}
TRIGGER = {"type", "name", "metadata", "authenticationRef", "metricType", "useCachedMetrics"}
NUMBER, BOOLEAN, ANY = r"-?\d+", "true|false", ".+"
KAFKA_TRIGGER = {
    "bootstrapServers": r"[\w.-]+:\d+(,[\w.-]+:\d+)*",
    "consumerGroup": ANY,
    "topic": ANY,
    "bootstrapServersFromEnv": ANY,
    "consumerGroupFromEnv": ANY,
    "topicFromEnv": ANY,
    "lagThreshold": NUMBER,
    "activationLagThreshold": NUMBER,
    "offsetResetPolicy": "latest|earliest",
    "allowIdleConsumers": BOOLEAN,
    "scaleToZeroOnInvalidOffset": BOOLEAN,
    "excludePersistentLag": BOOLEAN,
    "limitToPartitionsWithLag": BOOLEAN,
    "ensureEvenDistributionOfPartitions": BOOLEAN,
    "partitionLimitation": ANY,
    "version": ANY,
    "sasl": "none|plaintext|scram_sha256|scram_sha512|gssapi|oauthbearer",
    "tls": "enable|disable",
    "unsafeSsl": BOOLEAN,
}
KAFKA_PARAMETERS = {
    "sasl", "username", "password", "tls", "ca", "cert", "key", "keyPassword", "oauthTokenEndpointUri", "scopes",
    "oauthExtensions", "saslTokenProvider",
}  # fmt: skip
MECHANISMS = {"SCRAM-SHA-512": "scram_sha512", "SCRAM-SHA-256": "scram_sha256", "PLAIN": "plaintext"}


def own_kinds() -> list[dict[str, Any]]:
    return [document for document in resources() if not document["apiVersion"].startswith("keda.sh/")]


def name_of(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", own_kinds(), ids=name_of)
def test_kubernetes_own_kinds_follow_its_schema(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_a_wrong_field_is_seen() -> None:
    wrong = copy.deepcopy(by_kind("Deployment")[0])
    wrong["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_kustomization_names_every_file_and_the_image_in_use() -> None:
    kustomization = load(K8S / "kustomization.yaml")[0]
    assert (kustomization["apiVersion"], kustomization["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert set(kustomization) == {"apiVersion", "kind", "namespace", "labels", "resources", "images"}
    assert sorted(kustomization["resources"]) == sorted(
        path.name for path in K8S.iterdir() if path.name != "kustomization.yaml"
    )
    assert kustomization["namespace"] == by_kind("Namespace")[0]["metadata"]["name"]
    assert {one["name"] for one in kustomization["images"]} == {one.spec["image"] for one in containers()}


def keda_offences(document: dict[str, Any]) -> list[str]:
    """What is not a field of KEDA's, or not a value that it takes."""
    spec, found = document["spec"], list[str]()

    def only(where: str, given: dict[str, Any], known: set[str]) -> None:
        found.extend(f"{where}: {name}" for name in sorted(given.keys() - known))

    if document["kind"] == "TriggerAuthentication":
        only("spec", spec, {"podIdentity", "secretTargetRef", "env", "filePath", "configMapTargetRef"})
        for one in spec["secretTargetRef"]:
            only("secretTargetRef", one, {"parameter", "name", "key"})
            only("parameter", {one["parameter"]: 1}, KAFKA_PARAMETERS)
        return found
    only("spec", spec, SCALED_OBJECT)
    only("scaleTargetRef", spec["scaleTargetRef"], SCALE_TARGET)
    only("advanced", spec.get("advanced", {}), ADVANCED)
    for trigger in spec["triggers"]:
        only("trigger", trigger, TRIGGER)
        only("metadata", trigger["metadata"], set(KAFKA_TRIGGER))
        for key, value in trigger["metadata"].items():
            # KEDA takes strings only: a bare number or boolean is refused when it is applied.
            if not isinstance(value, str) or not re.fullmatch(KAFKA_TRIGGER.get(key, ANY), value):
                found.append(f"{key}: {value!r}")
    return found


@pytest.mark.parametrize("kind", ["ScaledObject", "TriggerAuthentication"])
def test_keda_objects_have_its_published_fields(kind: str) -> None:
    for document in by_kind(kind):
        assert document["apiVersion"] == "keda.sh/v1alpha1"
        assert keda_offences(document) == []
    assert by_kind(kind)


def test_a_wrong_field_of_keda_is_seen() -> None:
    wrong = copy.deepcopy(by_kind("ScaledObject")[0])
    wrong["spec"]["minReplicas"] = 1
    wrong["spec"]["triggers"][0]["metadata"] |= {"lagThreshold": 8, "group": "x"}
    assert keda_offences(wrong) == ["spec: minReplicas", "metadata: group", "lagThreshold: 8"]


def test_keda_looks_at_the_topic_and_the_group_of_the_runners() -> None:
    data = by_kind("ConfigMap")[0]["data"]
    address = KafkaAddress.parse(data["KAFKA_URL"])
    scaled = by_kind("ScaledObject")[0]["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "kafka"
    metadata = trigger["metadata"]
    assert metadata["bootstrapServers"] == address.bootstrap == urlsplit(data["KAFKA_URL"]).netloc
    assert metadata["topic"] == address.topic("tasks")
    assert metadata["consumerGroup"] == address.group("runners")
    assert metadata["sasl"] == MECHANISMS[data["AGL_KAFKA_SASL_MECHANISM"]]
    assert (metadata["tls"] == "enable") == data["AGL_KAFKA_SECURITY_PROTOCOL"].endswith("SSL")
    assert trigger["authenticationRef"]["name"] == by_kind("TriggerAuthentication")[0]["metadata"]["name"]
    target = next(one for one in by_kind("Deployment") if one["metadata"]["name"] == scaled["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"], "two would set the number of runners"
    assert scaled["minReplicaCount"] >= 1


def test_every_secret_and_volume_that_is_referred_to_exists_or_is_explained() -> None:
    explained = set(re.findall(r"--from-(?:literal|file)=([\w-]+)=", (K8S.parent / "README.md").read_text(encoding="utf-8")))
    wanted: set[str] = set()
    for container in containers():
        pod = next(
            document["spec"]["template"]["spec"]
            for document in resources()
            if container.spec in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
        )
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert {one["name"] for one in container.spec["volumeMounts"]} == set(volumes)
        for one in container.spec["env"]:
            wanted.add(one["valueFrom"]["secretKeyRef"]["key"])
        wanted |= {item["key"] for one in volumes.values() for item in one.get("secret", {}).get("items", [])}
    for one in by_kind("TriggerAuthentication")[0]["spec"]["secretTargetRef"]:
        wanted.add(one["key"])
    assert wanted == explained
    authority = by_kind("ConfigMap")[0]["data"]["AGL_KAFKA_SSL_CAFILE"]
    mounts = [one["mountPath"] for container in containers() for one in container.spec["volumeMounts"]]
    assert authority.rsplit("/", 1)[0] in mounts


def test_labels_find_the_pods_they_are_meant_for() -> None:
    for deployment in by_kind("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    store = next(one for one in by_kind("Deployment") if one["metadata"]["name"] == "store")
    labels = store["spec"]["template"]["metadata"]["labels"]
    service = by_kind("Service")[0]["spec"]
    assert service["selector"].items() <= labels.items()
    assert by_kind("PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (container,) = store["spec"]["template"]["spec"]["containers"]
    assert service["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}


def test_no_container_is_root_or_without_limits() -> None:
    for document in [*by_kind("Deployment"), *by_kind("Job")]:
        pod = document["spec"]["template"]["spec"]
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False and inner["readOnlyRootFilesystem"] is True
            assert inner["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
