"""All checks of the manifests by name. Each yields one line per problem."""

from collections.abc import Callable, Iterator

from tests.k8s import entrypoints, kuberay, references, schemas, security, validation
from tests.k8s.manifests import Manifests

Check = Callable[[Manifests], Iterator[str]]
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        schemas.plain_yaml,
        schemas.kubernetes,
        schemas.custom_resources,
        validation.validation,
        schemas.written_out,
        schemas.names,
        references.secrets,
        references.service_targets,
        references.ports,
        references.volumes,
        references.accounts,
        references.selectors,
        references.hosts,
        references.allowed_hosts,
        security.restricted,
        security.hardened,
        security.no_secrets,
        security.resources,
        security.probes,
        security.versions,
        kuberay.clusters,
        kuberay.jobs,
        entrypoints.entrypoints,
        entrypoints.job_files,
    )
}
NEED_DEFINITIONS = {"custom_resources", "written_out"}
