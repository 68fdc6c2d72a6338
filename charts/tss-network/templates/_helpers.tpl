{{- /* The name of the operator's objects. With the release `tss-network` it is that of config/kubernetes/operator.yaml. */}}
{{- define "tss-network.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else -}}
{{- $name := .Values.nameOverride | default "tss-network" -}}
{{- $base := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{ $base | trunc 54 | trimSuffix "-" }}-operator
{{- end -}}
{{- end }}

{{- /* Managers let in Pods of this name, see operator/src/cluster/build/network.rs: no value changes it. */}}
{{- define "tss-network.selector" -}}
app.kubernetes.io/name: tss-network-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* What all objects have, whatever they are for. */}}
{{- define "tss-network.commonLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tss-network
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tss-network.labels" -}}
app.kubernetes.io/name: tss-network-operator
{{ include "tss-network.commonLabels" . }}
{{- end }}

{{- define "tss-network.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{ .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create -}}
{{ include "tss-network.fullname" . }}
{{- else -}}
{{- fail "serviceAccount.name: expected the name of a ServiceAccount, since serviceAccount.create is false" -}}
{{- end -}}
{{- end }}

{{- /* The image of a program: (list . "operator"). */}}
{{- define "tss-network.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.image (index . 1) -}}
{{- $repository := $image.repository -}}
{{- with $root.Values.image.registry }}{{ $repository = printf "%s/%s" . $repository }}{{ end -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{ $repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* Whether an object is wanted: (list . VALUE KIND), KIND a kind of monitoring.coreos.com/v1. Not empty if so. */}}
{{- define "tss-network.wanted" -}}
{{- $root := index . 0 -}}
{{- $value := index . 1 | toString -}}
{{- if eq $value "true" -}}
true
{{- else if eq $value "auto" -}}
{{- if $root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" (index . 2)) }}true{{ end -}}
{{- end -}}
{{- end }}

{{- /* The TssCluster that `helm test` has sign; empty if there is none. */}}
{{- define "tss-network.testCluster" -}}
{{- if .Values.test.cluster -}}
{{ .Values.test.cluster }}
{{- else if .Values.cluster.enabled -}}
{{ .Values.cluster.name }}
{{- end -}}
{{- end }}

{{- /* The Secret that cert-manager puts the certificate of the network's managers into. */}}
{{- define "tss-network.managerTlsSecret" -}}
{{ .Values.cluster.name }}-manager-tls
{{- end }}

{{- /* The volume with the authorities that vouch for managers; empty if it is the system's own that do. */}}
{{- define "tss-network.managerCa" -}}
{{- $ca := .Values.managerCa -}}
{{- if and $ca.existingSecret $ca.configMap -}}
{{- fail "managerCa: expected existingSecret or configMap, not both" -}}
{{- end -}}
{{- $items := list (dict "key" $ca.key "path" "ca.crt") -}}
{{- if $ca.configMap -}}
{{- dict "configMap" (dict "name" $ca.configMap "optional" true "items" $items) | toYaml -}}
{{- else if $ca.existingSecret -}}
{{- dict "secret" (dict "secretName" $ca.existingSecret "optional" true "items" $items) | toYaml -}}
{{- else if and .Values.cluster.enabled .Values.cluster.certManager.enabled -}}
{{- $items = list (dict "key" "ca.crt" "path" "ca.crt") -}}
{{- dict "secret" (dict "secretName" (include "tss-network.managerTlsSecret" .) "optional" true "items" $items) | toYaml -}}
{{- end -}}
{{- end }}
