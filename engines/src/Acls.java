// Makes a broker's access rules, for Kafka's own tool is not among the jars on Maven Central that resolve.
// Arguments: address of a listener that needs no authentication, then a rule each: principal operation type pattern name.
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;

class Acls {
    public static void main(String[] arguments) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        List<AclBinding> rules = new ArrayList<>();
        for (String rule : Arrays.asList(arguments).subList(1, arguments.length)) {
            String[] part = rule.split(" ");
            rules.add(new AclBinding(
                new ResourcePattern(ResourceType.valueOf(part[2]), part[4], PatternType.valueOf(part[3])),
                new AccessControlEntry(part[0], "*", AclOperation.valueOf(part[1]), AclPermissionType.ALLOW)));
        }
        try (Admin admin = Admin.create(settings)) {
            admin.createAcls(rules).all().get();
        }
    }
}
