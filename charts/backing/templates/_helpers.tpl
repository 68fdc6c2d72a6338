{{- /* The name of a server's objects: (list . "rabbitmq"). */}}
{{- define "backing.name" -}}
{{ (index . 0).Release.Name | trunc 40 | trimSuffix "-" }}-{{ index . 1 }}
{{- end }}

{{- define "backing.selector" -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{- define "backing.labels" -}}
{{- $root := index . 0 -}}
{{ include "backing.selector" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: tss-network
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "backing.image" -}}
{{- $root := index . 0 -}}
{{- $image := (get $root.Values (index . 1)).image -}}
{{- with $root.Values.image.registry }}{{ . }}/{{ end -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag }}{{ end }}
{{- end }}

{{- /* What both servers have around them: ServiceAccount, Service, NetworkPolicy: (list . "rabbitmq" PORT). */}}
{{- define "backing.around" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "backing.name" . }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "backing.labels" . | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: v1
kind: Service
metadata:
  name: {{ include "backing.name" . }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "backing.labels" . | nindent 4 }}
spec:
  selector:
    {{- include "backing.selector" . | nindent 4 }}
  ports:
    - name: {{ index . 1 }}
      port: {{ index . 2 }}
      targetPort: {{ index . 1 }}
{{- if $root.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "backing.name" . }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "backing.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "backing.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - podSelector: {}
      ports:
        - port: {{ index . 2 }}
          protocol: TCP
  egress:
    # Names of Services. Otherwise they ask nobody for anything.
    - ports:
        - port: 53
          protocol: UDP
        - port: 53
          protocol: TCP
{{- end }}
{{- end }}

{{- /* Of a StatefulSet's spec and its Pod's, what both servers have in common. */}}
{{- define "backing.stateful" -}}
replicas: 1
revisionHistoryLimit: 3
serviceName: {{ include "backing.name" . }}
selector:
  matchLabels:
    {{- include "backing.selector" . | nindent 4 }}
{{- end }}

{{- define "backing.pod" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "backing.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 60
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "backing.container" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
image: {{ include "backing.image" . }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
ports:
  - name: {{ index . 1 }}
    containerPort: {{ index . 2 }}
# It listens when its user has been made.
startupProbe:
  tcpSocket:
    port: {{ index . 1 }}
  periodSeconds: 2
  failureThreshold: 90
readinessProbe:
  tcpSocket:
    port: {{ index . 1 }}
livenessProbe:
  tcpSocket:
    port: {{ index . 1 }}
  periodSeconds: 20
  timeoutSeconds: 5
resources:
  {{- toYaml (get $root.Values (index . 1)).resources | nindent 2 }}
securityContext:
  {{- toYaml $root.Values.securityContext | nindent 2 }}
{{- end }}

{{- define "backing.claim" -}}
{{- $storage := (get (index . 0).Values (index . 1)).storage -}}
- metadata:
    name: data
    labels:
      {{- include "backing.selector" . | nindent 6 }}
  spec:
    accessModes: [ReadWriteOnce]
    resources:
      requests:
        storage: {{ $storage.size }}
    {{- with $storage.storageClassName }}
    storageClassName: {{ . }}
    {{- end }}
{{- end }}

{{- /* The name of the Secret of a server. */}}
{{- define "backing.secretName" -}}
{{- $values := get (index . 0).Values (index . 1) -}}
{{ $values.existingSecret | default $values.secret }}
{{- end }}

{{- /* What a Secret that was made has in Kubernetes; it is not overwritten, since the volume has its password. */}}
{{- define "backing.kept" -}}
{{- $root := index . 0 -}}
{{- with (lookup "v1" "Secret" $root.Release.Namespace (get $root.Values (index . 1)).secret) }}
{{- toYaml .data }}
{{- end }}
{{- end }}

{{- define "backing.secret" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{ (get $root.Values (index . 1)).secret }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "backing.labels" . | nindent 4 }}
  annotations:
    # As the volume is, which has its password.
    helm.sh/resource-policy: keep
type: Opaque
{{- end }}
