# The guest, once its root is in place: PID 1, by bash. It ends when there is nothing more to do.
#
#   rig.agent=ADDRESS:PORT   does what the harness says, see serve_commands
#   rig.script=PATH          runs a script and ends
#   neither                  a shell on the console, and ends after it
#   rig.deadline=SECONDS     the guest ends then in any case
#   rig.modules=NAME,NAME    more kernel modules
#   rig.interface=NAME       its network card, where that is not vec0
export PATH=/run/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=${TERM:-linux}
# There is no udev here: the device-mapper's users make their device nodes themselves.
export DM_DISABLE_UDEV=1 LVM_SUPPRESS_FD_WARNINGS=1

power_off() {
    sync
    echo o >/proc/sysrq-trigger
    sleep 60
}
trap power_off EXIT

if [ -n "$rig_deadline" ]; then
    (sleep "$rig_deadline" && echo "rig: the deadline has passed" && echo o >/proc/sysrq-trigger) &
fi

for module in dm-mod dm-snapshot dm-thin-pool dm-mirror dm-delay loop nbd ${rig_modules//,/ }; do
    modprobe "$module" || echo "rig: no module $module"
done
# Linux looks at several SCSI disks at a time. In QEMU they are to have their names in the order in which they are plugged in.
if [ -n "$rig_kernel" ]; then
    modprobe scsi_mod && echo 0 >/sys/bus/scsi/drivers_autoprobe
    modprobe sd_mod && modprobe virtio_scsi
    for disk in $(ls -v /sys/bus/scsi/devices | grep '^[0-9]'); do
        echo "$disk" >/sys/bus/scsi/drivers/sd/bind
    done
    echo 1 >/sys/bus/scsi/drivers_autoprobe
fi
mkdir -p /etc/lvm
cat >/etc/lvm/lvmlocal.conf <<'CONF'
devices {
    use_devicesfile=0
    obtain_device_list_from_udev=0
    types=["ubd",16]
}
activation {
    udev_sync=0
    udev_rules=0
    monitoring=0
}
global {
    use_lvmpolld=0
}
CONF
ip link set lo up
if [ -n "$rig_address" ]; then
    ip address add "$rig_address/24" dev "${rig_interface:-vec0}"
    ip link set "${rig_interface:-vec0}" up
fi

# Each line of the control connection is the number of a script /run/share/NUMBER.sh. It runs with a connection of its own as
# stdin and stdout. When it has ended, its number and exit status go back over the control connection. Its stderr is the console.
# The first line of every connection is the process id of who speaks. The guest ends when the control connection is closed.
serve_commands() {
    local agent=/dev/tcp/${rig_agent%:*}/${rig_agent##*:} number
    exec 9<>"$agent" || return
    echo $$ >&9
    while read -r -u 9 number; do
        run_command "$agent" "$number" &
    done
}

run_command() {
    exec 8<>"$1"
    # shellcheck disable=SC2016
    bash -c 'exec 8>&- 9>&-; echo $$; exec bash "$1"' - "/run/share/$2.sh" <&8 >&8
    local status=$?
    exec 8>&-
    echo "$2 $status" >&9
}

if [ -n "$rig_agent" ]; then
    serve_commands
elif [ -n "$rig_script" ]; then
    bash "$rig_script"
    echo "rig: exit status $?"
else
    setsid --ctty --wait bash -i </dev/tty0 >/dev/tty0 2>&1
fi
