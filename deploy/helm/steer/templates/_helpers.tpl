{{- /* With "-worker-", a pool of 20 letters and "-headless" it fits the 63 of a name. */ -}}
{{- define "steer.name" -}}
{{- $name := default .Release.Name .Values.nameOverride | trunc 26 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $name) -}}
{{- fail (printf "nameOverride: give one, %q cannot begin the names of services: a letter, then letters, digits and dashes" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- /* Labels of everything; takes {root, component}, and `pool` for workers. */ -}}
{{- define "steer.labels" -}}
{{ include "steer.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "steer.selector" -}}
app.kubernetes.io/name: steer
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
steer-pool: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "steer.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .image }}:{{ $tag }}
{{- end -}}

{{- define "steer.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "steer.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- /* A pool's values over the defaults. JSON, because templates return text. */ -}}
{{- define "steer.pool" -}}
{{- mergeOverwrite (deepCopy .root.Values.workerDefaults) (.pool | default dict) | toJson -}}
{{- end -}}

{{- /* What pods of both services have; takes {root, values}. */ -}}
{{- define "steer.podSpec" -}}
serviceAccountName: {{ include "steer.serviceAccount" .root | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
# NOT_SERVING for the delay, then the running requests, then a margin.
terminationGracePeriodSeconds: {{ add .values.drain.delaySeconds .values.drain.timeoutSeconds 10 }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- end -}}

{{- define "steer.spread" -}}
{{- if ne .values.spread "none" }}
topologySpreadConstraints:
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $.values.spread }}
    labelSelector:
      matchLabels: {{- include "steer.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "steer.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- /* A container's variables; takes {root, values, at} and `own`, those of this service. */ -}}
{{- define "steer.env" -}}
{{- $set := printf "%s\n%s" .own (include "steer.commonEnv" .) -}}
{{- range fromYamlArray $set -}}
{{- if hasKey ($.values.env | default dict) .name -}}
{{- fail (printf "%s.env: %s is set already, from the chart's other values" $.at .name) -}}
{{- end -}}
{{- end -}}
{{- $set -}}
{{- range $name, $value := .values.env }}
- {name: {{ $name | quote }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- /* Settings that both services have; takes {root, values}. */ -}}
{{- define "steer.commonEnv" -}}
{{- with .root.Values.tls }}
{{- range $key, $given := dict "workerSecret" .workerSecret "registrySecret" .registrySecret "clientCertificates" .clientCertificates "certManager.enabled" .certManager.enabled }}
{{- if and $given (not $.root.Values.tls.enabled) }}
{{- fail (printf "tls.%s: is given, but the services would speak plaintext: say tls.enabled: true, too" $key) }}
{{- end }}
{{- end }}
{{- range $key, $given := dict "workerSecret" .workerSecret "registrySecret" .registrySecret }}
{{- if and $given $.root.Values.tls.certManager.enabled }}
{{- fail (printf "tls.%s: is given, but tls.certManager is enabled and makes secrets of its own: leave one of them out" $key) }}
{{- end }}
{{- end }}
{{- end -}}
- {name: STEER_HEALTH_LISTEN, value: "0.0.0.0:8081"}
- {name: STEER_DRAIN_DELAY, value: {{ .values.drain.delaySeconds | int64 | quote }}}
- {name: STEER_DRAIN_TIMEOUT, value: {{ .values.drain.timeoutSeconds | int64 | quote }}}
- {name: STEER_MAX_CONNECTION_AGE, value: {{ .values.maxConnectionAgeSeconds | int64 | quote }}}
- {name: STEER_LOG_FORMAT, value: {{ .root.Values.logFormat | quote }}}
{{- with .root.Values.log }}
- {name: STEER_LOG, value: {{ . | quote }}}
{{- end }}
{{- with .root.Values.tracing.otlpEndpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if .root.Values.auth.existingSecret }}
- {name: STEER_API_KEYS, value: {{ printf "/etc/steer/keys/%s" .root.Values.auth.key | quote }}}
{{- else if and .root.Values.tls.enabled .root.Values.tls.clientCertificates }}
{{- else if .root.Values.auth.allowUnauthenticated }}
- {name: STEER_ALLOW_UNAUTHENTICATED, value: "true"}
{{- else }}
{{- fail "auth: give existingSecret (API keys) or tls.clientCertificates, or say allowUnauthenticated: true" }}
{{- end }}
{{- if .root.Values.tls.enabled }}
- {name: STEER_TLS_CERT, value: /etc/steer/tls/tls.crt}
- {name: STEER_TLS_KEY, value: /etc/steer/tls/tls.key}
{{- if .root.Values.tls.clientCertificates }}
- {name: STEER_TLS_CLIENT_CA, value: /etc/steer/tls/ca.crt}
{{- end }}
{{- end }}
{{- with .values.hubTokenSecret }}
- {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: token}}}
{{- end }}
{{- end -}}

{{- define "steer.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
{{- if .root.Values.tls.enabled }}
- {name: tls, mountPath: /etc/steer/tls, readOnly: true}
{{- end }}
{{- if .root.Values.auth.existingSecret }}
- {name: keys, mountPath: /etc/steer/keys, readOnly: true}
{{- end }}
{{- end -}}

{{- /* Takes {root, tlsSecret}. */ -}}
{{- define "steer.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 1Gi}}
{{- if .root.Values.tls.enabled }}
- {name: tls, secret: {secretName: {{ .tlsSecret | quote }}, defaultMode: 0440}}
{{- end }}
{{- with .root.Values.auth.existingSecret }}
- {name: keys, secret: {secretName: {{ . | quote }}, defaultMode: 0440}}
{{- end }}
{{- end -}}

{{- define "steer.tlsSecret" -}}
{{- $given := get .root.Values.tls (printf "%sSecret" .component) -}}
{{- if .root.Values.tls.certManager.enabled -}}
{{ include "steer.name" .root }}-{{ .component }}-tls
{{- else if and .root.Values.tls.enabled (not $given) -}}
{{- fail (printf "tls.%sSecret: name a secret, or turn tls.certManager on" .component) -}}
{{- else -}}
{{ $given }}
{{- end -}}
{{- end -}}

{{- /* Probes; takes {service, startupSeconds}. Liveness asks for the process alone, so that
neither loading nor draining gets a pod killed. */ -}}
{{- define "steer.probes" -}}
startupProbe:
  grpc: {port: 8081, service: {{ .service }}}
  periodSeconds: 5
  failureThreshold: {{ max 1 (div (add .startupSeconds 4) 5) }}
readinessProbe:
  grpc: {port: 8081, service: {{ .service }}}
  periodSeconds: 2
  failureThreshold: 1
livenessProbe:
  httpGet: {path: /livez, port: 8081}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{- define "steer.appProtocol" -}}
{{ ternary "https" "kubernetes.io/h2c" .Values.tls.enabled }}
{{- end -}}
