{{/* gateway.yaml, read. */}}
{{- define "site.gateway" -}}
{{- $read := fromYaml .Values.settings.gateway -}}
{{- if hasKey $read "Error" }}{{ fail (printf "settings.gateway is not YAML: %s" $read.Error) }}{{ end -}}
{{- if not (and $read.site $read.server) }}{{ fail "settings.gateway names no site or no server: give the kit's gateway.yaml, --set-file settings.gateway=gateway.yaml" }}{{ end -}}
{{- toYaml $read -}}
{{- end -}}

{{/* site.yaml, read; both files must be of one site, and its paths must lie in the container. */}}
{{- define "site.trainer" -}}
{{- $read := fromYaml .Values.settings.site -}}
{{- if hasKey $read "Error" }}{{ fail (printf "settings.site is not YAML: %s" $read.Error) }}{{ end -}}
{{- $gateway := fromYaml (include "site.gateway" .) -}}
{{- if ne (toString $read.name) (toString $gateway.site) }}{{ fail (printf "settings.site is of site %v and settings.gateway of %v: give both files of one start-up kit" $read.name $gateway.site) }}{{ end -}}
{{- if ne (toString $read.state_dir) "state" }}{{ fail (printf "settings.site has state_dir: %v; write `state`, where the chart mounts the claim" $read.state_dir) }}{{ end -}}
{{- toYaml $read -}}
{{- end -}}

{{/* The machine to call: gateway.yaml's proxy, or its server. */}}
{{- define "site.wayOut" -}}
{{- $gateway := fromYaml (include "site.gateway" .) -}}
{{- $place := $gateway.server | toString | trim -}}
{{- if $gateway.proxy }}{{ $place = (urlParse $gateway.proxy).host | splitList "@" | last }}{{ end -}}
{{- if not (regexMatch ":\\s*\\d{1,5}$" $place) }}{{ fail (printf "gateway.yaml names %s without a port; write HOST:PORT" $place) }}{{ end -}}
host: {{ regexReplaceAll ":\\s*\\d{1,5}$" $place "" | trimAll "[]" | quote }}
port: {{ regexFind "\\d{1,5}$" $place | int }}
{{- end -}}

{{- define "site.name" -}}
{{- printf "%s-site" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "site.labels" -}}
app.kubernetes.io/name: consilium-site
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "site.tag" -}}
{{- .Values.images.tag | default .Chart.AppVersion -}}
{{- end -}}

{{/* What no container of the pod may do. */}}
{{- define "site.hardened" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: true
{{- end -}}
