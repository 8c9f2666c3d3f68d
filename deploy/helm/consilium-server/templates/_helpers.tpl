{{- define "server.name" -}}
{{- printf "%s-server" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "server.labels" -}}
app.kubernetes.io/name: consilium-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "server.image" -}}
image: "{{ .Values.image.name }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{/* What no container of the pod may do. */}}
{{- define "server.hardened" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: true
{{- end -}}

{{/* True while something listens (state 0A) on the sites' port. */}}
{{- define "server.listens" -}}
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ':{{ printf "%04X" (int .Values.port) }} 0*:0000 0A'
{{- end -}}
